{{/* The chart's name, as the label has it. */}}
{{- define "pleach.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of every object: the release's, and the chart's where that has it not. */}}
{{- define "pleach.fullname" -}}
{{- $name := include "pleach.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 55 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 55 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 55 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What selects the pods; it never changes. */}}
{{- define "pleach.selector" -}}
app.kubernetes.io/name: {{ include "pleach.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pleach.labels" -}}
{{ include "pleach.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What runs the pods. */}}
{{- define "pleach.kind" -}}
{{- if eq .Values.cache.kind "perReplica" }}StatefulSet{{ else }}Deployment{{ end }}
{{- end }}

{{/* The Secret with the file of keys; empty where there is none. */}}
{{- define "pleach.keys" -}}
{{- if .Values.apiKeys.existingSecret }}
{{- .Values.apiKeys.existingSecret }}
{{- else if .Values.apiKeys.file }}
{{- include "pleach.fullname" . }}-keys
{{- end }}
{{- end }}

{{/* What a claim asks for. */}}
{{- define "pleach.claim" -}}
accessModes: {{ toJson .Values.cache.accessModes }}
{{- with .Values.cache.storageClass }}
storageClassName: {{ . | quote }}
{{- end }}
resources:
  requests: {storage: {{ .Values.cache.size | quote }}}
{{- end }}
