// Devices, their memory and streams: what a caller needs besides the kernels, so that it needs nothing else.
//
// On the CPU a device is the emulator: one, its memory the host's, poisoned with 0xff, its streams nothing.

#include <cstdio>

#include "common.cuh"

using namespace pleach;

extern "C" int pleach_kernels_version(void) { return PLEACH_KERNELS_VERSION; }

#if defined(__CUDACC__)

namespace {
cudaStream_t stream_of(void *stream) { return static_cast<cudaStream_t>(stream); }
}  // namespace

extern "C" const char *pleach_error_text(void) { return cudaGetErrorString(last_error); }

extern "C" int pleach_device_count(int32_t *count) { return status_of(cudaGetDeviceCount(count)); }

extern "C" int pleach_use_device(int32_t device) { return status_of(cudaSetDevice(device)); }

extern "C" int pleach_device_info(char *name, int64_t size, int64_t *free_bytes, int64_t *total_bytes) {
    int device = 0;
    cudaDeviceProp properties;
    size_t free = 0, total = 0;
    int status = status_of(cudaGetDevice(&device));
    if (status == PLEACH_OK) status = status_of(cudaGetDeviceProperties(&properties, device));
    if (status == PLEACH_OK) status = status_of(cudaMemGetInfo(&free, &total));
    if (status != PLEACH_OK) return status;
    std::snprintf(name, size_t(size), "%s", properties.name);
    *free_bytes = int64_t(free);
    *total_bytes = int64_t(total);
    return PLEACH_OK;
}

extern "C" int pleach_stream_create(void **stream) {
    return status_of(cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t *>(stream), cudaStreamNonBlocking));
}
extern "C" int pleach_stream_destroy(void *stream) { return status_of(cudaStreamDestroy(stream_of(stream))); }
extern "C" int pleach_synchronize(void *stream) { return status_of(cudaStreamSynchronize(stream_of(stream))); }

extern "C" int pleach_allocate(void **memory, int64_t bytes) { return status_of(cudaMalloc(memory, size_t(bytes))); }
extern "C" int pleach_free(void *memory) { return status_of(cudaFree(memory)); }
extern "C" int pleach_allocate_host(void **memory, int64_t bytes) {
    return status_of(cudaMallocHost(memory, size_t(bytes)));
}
extern "C" int pleach_free_host(void *memory) { return status_of(cudaFreeHost(memory)); }

extern "C" int pleach_upload(void *device, const void *host, int64_t bytes, void *stream) {
    return status_of(cudaMemcpyAsync(device, host, size_t(bytes), cudaMemcpyHostToDevice, stream_of(stream)));
}
extern "C" int pleach_download(void *host, const void *device, int64_t bytes, void *stream) {
    return status_of(cudaMemcpyAsync(host, device, size_t(bytes), cudaMemcpyDeviceToHost, stream_of(stream)));
}
extern "C" int pleach_fill(void *device, int value, int64_t bytes, void *stream) {
    return status_of(cudaMemsetAsync(device, value, size_t(bytes), stream_of(stream)));
}

extern "C" int pleach_graph_begin(void *stream) {
    return status_of(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal));
}
extern "C" int pleach_graph_end(void *stream, void **graph) {
    cudaGraph_t recorded = nullptr;
    cudaGraphExec_t made = nullptr;
    int status = status_of(cudaStreamEndCapture(stream_of(stream), &recorded));
    if (status == PLEACH_OK) status = status_of(cudaGraphInstantiate(&made, recorded, 0));
    if (recorded) cudaGraphDestroy(recorded);
    // The next launch must not report a failure of this one.
    if (status != PLEACH_OK) cudaGetLastError();
    *graph = made;
    return status;
}
extern "C" int pleach_graph_launch(void *graph, void *stream) {
    return status_of(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)));
}
extern "C" int pleach_graph_destroy(void *graph) {
    return status_of(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

#else

extern "C" const char *pleach_error_text(void) { return "out of memory"; }

extern "C" int pleach_device_count(int32_t *count) { return *count = 1, PLEACH_OK; }
extern "C" int pleach_use_device(int32_t device) { return device == 0 ? PLEACH_OK : PLEACH_LAUNCH_FAILED; }

extern "C" int pleach_device_info(char *name, int64_t size, int64_t *free_bytes, int64_t *total_bytes) {
    std::snprintf(name, size_t(size), "emulator");
    *free_bytes = *total_bytes = int64_t(1) << 30;
    return PLEACH_OK;
}

extern "C" int pleach_stream_create(void **stream) { return *stream = nullptr, PLEACH_OK; }
extern "C" int pleach_stream_destroy(void *) { return PLEACH_OK; }
extern "C" int pleach_synchronize(void *) { return emulator::not_recording(), PLEACH_OK; }

extern "C" int pleach_graph_begin(void *) {
    emulator::recording = new emulator::Recording;
    return PLEACH_OK;
}
extern "C" int pleach_graph_end(void *, void **graph) {
    *graph = emulator::recording;
    emulator::recording = nullptr;
    return PLEACH_OK;
}
extern "C" int pleach_graph_launch(void *graph, void *) {
    for (const auto &launch : *static_cast<emulator::Recording *>(graph)) launch();
    return PLEACH_OK;
}
extern "C" int pleach_graph_destroy(void *graph) {
    delete static_cast<emulator::Recording *>(graph);
    return PLEACH_OK;
}

extern "C" int pleach_allocate(void **memory, int64_t bytes) {
    emulator::not_recording();
    if (posix_memalign(memory, 256, size_t(bytes)) != 0) return PLEACH_LAUNCH_FAILED;
    std::memset(*memory, 0xff, size_t(bytes));
    return PLEACH_OK;
}
extern "C" int pleach_free(void *memory) { return std::free(memory), PLEACH_OK; }
extern "C" int pleach_allocate_host(void **memory, int64_t bytes) { return pleach_allocate(memory, bytes); }
extern "C" int pleach_free_host(void *memory) { return pleach_free(memory); }

extern "C" int pleach_upload(void *device, const void *host, int64_t bytes, void *) {
    return emulator::not_recording(), std::memcpy(device, host, size_t(bytes)), PLEACH_OK;
}
extern "C" int pleach_download(void *host, const void *device, int64_t bytes, void *) {
    return emulator::not_recording(), std::memcpy(host, device, size_t(bytes)), PLEACH_OK;
}
extern "C" int pleach_fill(void *device, int value, int64_t bytes, void *) {
    return emulator::not_recording(), std::memset(device, value, size_t(bytes)), PLEACH_OK;
}

#endif
