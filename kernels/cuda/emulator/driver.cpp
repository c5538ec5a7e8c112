// The emulator as NVIDIA's driver: `libcuda.so` with the calls that the server makes, so that the program that is
// shipped computes on the CPU where this library is found first:
//
//   kernels/cuda/emulator/build.sh FOLDER && LD_LIBRARY_PATH=FOLDER pleach --device cuda
//
// As on a GPU, work waits in its stream: copies and kernels run when somebody waits for them (the host's memory is read
// when its copy is called for), a stream that is recorded takes launches alone, and a call outside a context fails.
// Memory is the host's, poisoned with 0xff, exactly as large as it says: the address sanitizer sees a byte too far.
//
// EMULATOR_ORDER=forward|reverse|shuffled and EMULATOR_SEED=N say in which order threads and blocks take their turns.

#include "emulator.h"

#define API extern "C" __attribute__((visibility("default"))) Status

namespace {

enum Status {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    CAPTURE_UNSUPPORTED = 900,
};

using Work = std::vector<emulator::Run>;

struct Stream {
    Work waiting, recorded;
    bool recording = false;

    void wait() {
        // What runs cannot add to what waits.
        for (const auto &run : waiting) run();
        waiting.clear();
    }
};

constexpr size_t TOTAL = size_t(1) << 30;

int the_context;
thread_local void *current = nullptr;

Status allocate(void **memory, size_t bytes) {
    if (!current) return INVALID_CONTEXT;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > TOTAL || posix_memalign(memory, 256, bytes) != 0) return OUT_OF_MEMORY;
    std::memset(*memory, 0xff, bytes);
    return OK;
}

/// A copy, or what else cannot be recorded.
Status enqueue(Stream *stream, emulator::Run work) {
    if (!current) return INVALID_CONTEXT;
    if (stream->recording) return CAPTURE_UNSUPPORTED;
    stream->waiting.push_back(std::move(work));
    return OK;
}

template <class T>
T *at(uint64_t address) {
    return reinterpret_cast<T *>(address);
}

}  // namespace

// ---- devices and contexts -----------------------------------------------------------------------------------

API cuInit(unsigned) {
    using emulator::Order;
    const char *order = std::getenv("EMULATOR_ORDER"), *seed = std::getenv("EMULATOR_SEED");
    const std::string name = order ? order : "forward";
    emulator::order = name == "reverse" ? Order::reverse : name == "shuffled" ? Order::shuffled : Order::forward;
    if (seed) emulator::shuffle_state = std::strtoull(seed, nullptr, 10);
    return OK;
}
API cuDeviceGetCount(int *count) { return *count = 1, OK; }
API cuDeviceGet(int *device, int index) { return index == 0 ? (*device = 0, OK) : INVALID_DEVICE; }
API cuDeviceGetName(char *name, int size, int) { return std::snprintf(name, size_t(size), "emulator"), OK; }
API cuDeviceGetAttribute(int *value, int, int) { return *value = 0, OK; }
API cuDevicePrimaryCtxRetain(void **context, int) { return *context = &the_context, OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxGetCurrent(void **context) { return *context = current, OK; }
API cuCtxSetCurrent(void *context) { return current = context, OK; }
API cuMemGetInfo_v2(size_t *free, size_t *total) {
    return current ? (*free = *total = TOTAL, OK) : INVALID_CONTEXT;
}

API cuGetErrorName(Status, const char **name) { return *name = "an error of the emulator", OK; }
API cuGetErrorString(Status status, const char **text) {
    *text = status == OUT_OF_MEMORY         ? "out of memory"
            : status == INVALID_DEVICE      ? "invalid device ordinal"
            : status == INVALID_CONTEXT     ? "invalid device context"
            : status == NOT_FOUND           ? "named symbol not found"
            : status == CAPTURE_UNSUPPORTED ? "operation not permitted when stream is capturing"
                                            : "invalid argument";
    return OK;
}

// ---- memory and streams -------------------------------------------------------------------------------------

API cuMemAlloc_v2(uint64_t *address, size_t bytes) { return allocate(reinterpret_cast<void **>(address), bytes); }
API cuMemFree_v2(uint64_t address) { return std::free(at<void>(address)), OK; }
API cuMemHostAlloc(void **memory, size_t bytes, unsigned) { return allocate(memory, bytes); }
API cuMemFreeHost(void *memory) { return std::free(memory), OK; }

API cuStreamCreate(Stream **stream, unsigned) { return current ? (*stream = new Stream, OK) : INVALID_CONTEXT; }
API cuStreamDestroy_v2(Stream *stream) { return stream->wait(), delete stream, OK; }
API cuStreamSynchronize(Stream *stream) { return stream->recording ? CAPTURE_UNSUPPORTED : (stream->wait(), OK); }

API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *stream) {
    const auto *first = static_cast<const unsigned char *>(from);
    return enqueue(stream, [to, copy = std::vector<unsigned char>(first, first + bytes)] {
        std::memcpy(at<void>(to), copy.data(), copy.size());
    });
}
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *stream) {
    return enqueue(stream, [=] { std::memcpy(to, at<void>(from), bytes); });
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream *stream) {
    return enqueue(stream, [=] { std::memset(at<void>(to), value, bytes); });
}

// ---- kernels ------------------------------------------------------------------------------------------------

API cuModuleLoadData(void **module, const void *) { return *module = &the_context, OK; }
API cuModuleUnload(void *) { return OK; }
API cuModuleGetFunction(const emulator::Kernel **kernel, void *, const char *name) {
    const auto found = emulator::Kernel::all().find(name);
    return found == emulator::Kernel::all().end() ? NOT_FOUND : (*kernel = found->second, OK);
}
API cuLaunchKernel(const emulator::Kernel *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x,
                   unsigned y, unsigned z, unsigned, Stream *stream, void **arguments, void **) {
    const emulator::Dim grid{grid_x, grid_y, grid_z}, block{x, y, z};
    const uint64_t threads = uint64_t(x) * y * z;
    if (threads == 0 || threads > kernel->bounds[0]) return INVALID_VALUE;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535)
        return INVALID_VALUE;
    if (!current) return INVALID_CONTEXT;
    auto &work = stream->recording ? stream->recorded : stream->waiting;
    work.push_back([grid, block, body = kernel->bind(arguments[0])] { emulator::launch(grid, block, body); });
    return OK;
}

API cuStreamBeginCapture_v2(Stream *stream, int) {
    if (stream->recording) return INVALID_VALUE;
    return stream->recording = true, OK;
}
API cuStreamEndCapture(Stream *stream, Work **graph) {
    if (!stream->recording) return INVALID_VALUE;
    *graph = new Work(std::move(stream->recorded));
    stream->recorded.clear();
    return stream->recording = false, OK;
}
API cuGraphInstantiateWithFlags(Work **made, const Work *graph, unsigned long long) {
    return *made = new Work(*graph), OK;
}
API cuGraphLaunch(const Work *graph, Stream *stream) {
    if (stream->recording) return CAPTURE_UNSUPPORTED;
    stream->waiting.insert(stream->waiting.end(), graph->begin(), graph->end());
    return OK;
}
API cuGraphExecDestroy(Work *graph) { return delete graph, OK; }
API cuGraphDestroy(Work *graph) { return delete graph, OK; }
