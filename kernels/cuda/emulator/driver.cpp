// The emulator as NVIDIA's driver: `libcuda.so` with the calls that the server makes, so that the program that is
// shipped computes on the CPU where this library is found first:
//
//   kernels/cuda/emulator/build.sh FOLDER && LD_LIBRARY_PATH=FOLDER pleach --device cuda
//
// As on a GPU, work waits in its stream: copies and kernels run when somebody waits for them (of the host's memory, what
// the driver gave is read then, and other when its copy is called for), a stream that is recorded takes launches alone, and a call outside a context fails.
// Memory is the host's, poisoned with 0xff, exactly as large as it says: the address sanitizer sees a byte too far.
//
// EMULATOR_ORDER=forward|reverse|shuffled and EMULATOR_SEED=N say in which order threads and blocks take their turns.
// EMULATOR_MEMORY=BYTES is how much memory the device has. EMULATOR_FAIL_ALLOCATION=N has the Nth call fail of those
// that take memory on a GPU, counted from 1, and says so; where there are fewer, it says how many there were.
// EMULATOR_CONFLICTS=FILE has bank conflicts of shared memory counted into a table: kernel, requests of 128 bytes at
// most, turns that they took, and the turns of the worst.

#include <cstdio>
#include <map>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

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

/// A place in a stream; who waits for it waits for all that the stream has.
struct Event {
    Stream *behind = nullptr;
};

int the_context;
thread_local void *current = nullptr;

/// The device's memory, and calls that take some.
struct Memory {
    std::mutex lock;
    size_t total = size_t(1) << 30, used = 0;
    // A thread may give memory back while the program ends: these outlive it.
    std::unordered_map<void *, size_t> &blocks = *new std::unordered_map<void *, size_t>;
    std::map<const unsigned char *, size_t> &pinned = *new std::map<const unsigned char *, size_t>;
    uint64_t calls = 0, failing = 0, allocations = 0;
    std::unordered_set<const void *> &loaded = *new std::unordered_set<const void *>;

    Memory() {
        if (const char *bytes = std::getenv("EMULATOR_MEMORY")) total = std::strtoull(bytes, nullptr, 10);
        if (const char *number = std::getenv("EMULATOR_FAIL_ALLOCATION")) failing = std::strtoull(number, nullptr, 10);
    }
    ~Memory() {
        if (failing > calls) std::fprintf(stderr, "emulator: %llu allocations\n", (unsigned long long)calls);
    }

    /// Whether a call finds memory for what it needs beside its blocks.
    bool has_room(const char *call) {
        if (++calls != failing) return true;
        std::fprintf(stderr, "emulator: allocation %llu fails, %s\n", (unsigned long long)calls, call);
        return false;
    }

    Status allocate(const char *call, void **memory, size_t bytes, bool on_device) {
        if (!current) return INVALID_CONTEXT;
        if (bytes == 0) return INVALID_VALUE;
        const std::lock_guard<std::mutex> guard(lock);
        allocations++;
        if (!has_room(call) || (on_device && bytes > total - used)) return OUT_OF_MEMORY;
        if (posix_memalign(memory, 256, bytes) != 0) return OUT_OF_MEMORY;
        std::memset(*memory, 0xff, bytes);
        if (on_device) used += blocks[*memory] = bytes;
        else pinned[static_cast<unsigned char *>(*memory)] = bytes;
        return OK;
    }

    /// Whether these bytes are the host's, and the driver's.
    bool is_pinned(const unsigned char *first, size_t bytes) {
        const std::lock_guard<std::mutex> guard(lock);
        auto behind = pinned.upper_bound(first);
        if (behind == pinned.begin()) return false;
        const auto [start, size] = *--behind;
        return first + bytes <= start + size;
    }

    void free(void *memory) {
        const std::lock_guard<std::mutex> guard(lock);
        if (const auto block = blocks.find(memory); block != blocks.end()) {
            used -= block->second;
            blocks.erase(block);
        }
        pinned.erase(static_cast<unsigned char *>(memory));
        std::free(memory);
    }

    /// Of a call that takes memory of no size that is known.
    Status take(const char *call) {
        const std::lock_guard<std::mutex> guard(lock);
        return has_room(call) ? OK : OUT_OF_MEMORY;
    }

    /// Of a kernel that is loaded when it is first asked for.
    Status load(const void *kernel) {
        const std::lock_guard<std::mutex> guard(lock);
        if (loaded.count(kernel)) return OK;
        if (!has_room("cuModuleGetFunction")) return OUT_OF_MEMORY;
        loaded.insert(kernel);
        return OK;
    }
};
Memory memory;

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
API cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &the_context;
    return memory.take("cuDevicePrimaryCtxRetain");
}
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxGetCurrent(void **context) { return *context = current, OK; }
API cuCtxSetCurrent(void *context) { return current = context, OK; }
API cuMemGetInfo_v2(size_t *free, size_t *total) {
    const std::lock_guard<std::mutex> guard(memory.lock);
    *free = memory.total - memory.used, *total = memory.total;
    return current ? OK : INVALID_CONTEXT;
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

API cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    return memory.allocate("cuMemAlloc", reinterpret_cast<void **>(address), bytes, true);
}
API cuMemFree_v2(uint64_t address) { return memory.free(at<void>(address)), OK; }
API cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    return memory.allocate("cuMemHostAlloc", address, bytes, false);
}
API cuMemFreeHost(void *address) { return memory.free(address), OK; }

API cuStreamCreate(Stream **stream, unsigned) {
    if (!current) return INVALID_CONTEXT;
    const Status status = memory.take("cuStreamCreate");
    if (status == OK) *stream = new Stream;
    return status;
}
API cuStreamDestroy_v2(Stream *stream) { return stream->wait(), delete stream, OK; }
API cuStreamSynchronize(Stream *stream) { return stream->recording ? CAPTURE_UNSUPPORTED : (stream->wait(), OK); }

API cuEventCreate(Event **event, unsigned) {
    if (!current) return INVALID_CONTEXT;
    const Status status = memory.take("cuEventCreate");
    if (status == OK) *event = new Event;
    return status;
}
API cuEventRecord(Event *event, Stream *stream) {
    if (stream->recording) return CAPTURE_UNSUPPORTED;
    return event->behind = stream, OK;
}
API cuEventSynchronize(const Event *event) { return event->behind ? cuStreamSynchronize(event->behind) : OK; }
API cuEventDestroy_v2(const Event *event) { return delete event, OK; }

API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *stream) {
    const auto *first = static_cast<const unsigned char *>(from);
    if (memory.is_pinned(first, bytes)) return enqueue(stream, [=] { std::memcpy(at<void>(to), first, bytes); });
    return enqueue(stream, [to, copy = std::vector<unsigned char>(first, first + bytes)] {
        std::memcpy(at<void>(to), copy.data(), copy.size());
    });
}
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *stream) {
    return enqueue(stream, [=] { std::memcpy(to, at<void>(from), bytes); });
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream *stream) {
    return enqueue(stream, [=] { std::memcpy(at<void>(to), at<void>(from), bytes); });
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream *stream) {
    return enqueue(stream, [=] { std::memset(at<void>(to), value, bytes); });
}

// ---- kernels ------------------------------------------------------------------------------------------------

API cuModuleLoadData(void **module, const void *) {
    *module = &the_context;
    return memory.take("cuModuleLoadData");
}
API cuModuleUnload(void *) { return OK; }
API cuModuleGetFunction(const emulator::Kernel **kernel, void *, const char *name) {
    const auto found = emulator::Kernel::all().find(name);
    if (found == emulator::Kernel::all().end()) return NOT_FOUND;
    *kernel = found->second;
    return memory.load(*kernel);
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
    work.push_back([=, body = kernel->bind(arguments[0])] { emulator::launch(kernel->name, grid, block, body); });
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
    const Status status = memory.take("cuGraphInstantiate");
    if (status == OK) *made = new Work(*graph);
    return status;
}
API cuGraphLaunch(const Work *graph, Stream *stream) {
    if (stream->recording) return CAPTURE_UNSUPPORTED;
    stream->waiting.insert(stream->waiting.end(), graph->begin(), graph->end());
    return OK;
}
API cuGraphExecDestroy(Work *graph) { return delete graph, OK; }
API cuGraphDestroy(Work *graph) { return delete graph, OK; }

// ---- for tests ----------------------------------------------------------------------------------------------

/// How often memory was asked for, as a library of tests is called.
extern "C" __attribute__((visibility("default"))) int pleach_main(const void *, int, const char *const *) {
    const std::lock_guard<std::mutex> guard(memory.lock);
    return int(memory.allocations);
}
