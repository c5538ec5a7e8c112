// Runs CUDA kernels on the CPU, for tests: every thread of a block is a fiber, blocks run one after
// another, and a fiber gives way only at barriers and warp collectives. What goes unseen on a GPU until
// it is unlucky is an error here, whatever the order:
//
// - a race on shared memory: two threads touch an element, one writes, and no barrier lies between;
// - shared memory read before it is written, or touched outside its array;
// - a barrier or collective that some of its threads never reach, or reach elsewhere;
// - a shuffle from a lane outside the mask.
//
// Global memory is left to the address sanitizer. One launch at a time; not for speed. Where it is asked to, it counts
// how often the lanes of a warp meet in a bank of shared memory (conflicts.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "conflicts.h"
#include "fiber.h"

#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict

namespace emulator {

/// The order in which threads of a block, and blocks of a grid, take their turns.
enum class Order { forward, reverse, shuffled };

/// What a thread does, or something else that is put off.
using Run = std::function<void()>;

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

constexpr unsigned WARP = 32;
/// Bytes a lane brings to a warp collective.
constexpr unsigned PAYLOAD = 32;

enum class State { runnable, at_barrier, at_collective, finished };

struct Thread {
    Fiber fiber;
    State state = State::runnable;
    Dim index;
    unsigned linear = 0;
    const char *site = "";  // barrier or collective it waits at
    int line = 0;
    unsigned mask = 0;
    bool fence = false;  // the collective orders memory
    Accesses accesses;   // where conflicts are counted
    unsigned char payload[PAYLOAD] = {};
};

struct Warp {
    unsigned epoch = 0;  // counts __syncwarp
    unsigned char lanes[WARP][PAYLOAD] = {};
};

/// Who touched an element of shared memory last.
struct Access {
    static constexpr int nobody = -1, several = -2;
    int thread = nobody;
    unsigned warp = 0, block_epoch = 0, warp_epoch = 0;
    bool atomic = false;
};

struct SharedBlock {
    const void *key;
    std::unique_ptr<unsigned char[]> bytes;
    std::vector<Access> writes, reads;
};

struct Block {
    Dim grid, size, index;
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<Warp> warps;
    std::vector<std::unique_ptr<SharedBlock>> shared;
    Run body;
    Context scheduler;
    Thread *current = nullptr;
    unsigned count = 0, epoch = 0;  // epoch counts __syncthreads
};

inline Order order = Order::forward;
inline uint64_t shuffle_state = 1;
inline Block block;

[[noreturn]] inline void fail(const char *what, const char *site = "", int line = 0) {
    std::fprintf(stderr, "emulator: %s", what);
    if (*site) std::fprintf(stderr, " at %s:%d", site, line);
    std::fprintf(stderr, " (block %u,%u,%u", block.index.x, block.index.y, block.index.z);
    if (block.current) std::fprintf(stderr, ", thread %u", block.current->linear);
    std::fprintf(stderr, ")\n");
    std::abort();
}

inline unsigned lane() { return block.current->linear % WARP; }
inline Warp &warp() { return block.warps[block.current->linear / WARP]; }

inline void give_way(State state, const char *site, int line) {
    Thread &self = *block.current;
    self.state = state;
    self.site = site;
    self.line = line;
    self.accesses.synchronised();
    switch_to(self.fiber.context, block.scheduler);
}

inline void barrier(const char *site, int line) { give_way(State::at_barrier, site, line); }

/// Waits for all lanes of `mask`, then returns what each brought.
template <class T>
inline void collect(unsigned mask, const T &mine, T (&all)[WARP], const char *site, int line,
                    bool fence = false) {
    static_assert(sizeof(T) <= PAYLOAD && std::is_trivially_copyable_v<T>);
    Thread &self = *block.current;
    if (!(mask >> lane() & 1)) fail("a lane outside its own mask", site, line);
    self.mask = mask;
    self.fence = fence;
    std::memcpy(self.payload, &mine, sizeof(T));
    give_way(State::at_collective, site, line);
    for (unsigned i = 0; i < WARP; i++) std::memcpy(&all[i], warp().lanes[i], sizeof(T));
}

template <class T>
inline T shuffle(unsigned mask, T value, unsigned source, bool valid, const char *site, int line) {
    T all[WARP];
    collect(mask, value, all, site, line);
    if (!valid) return value;
    if (!(mask >> source & 1)) fail("a shuffle from a lane outside the mask", site, line);
    return all[source];
}

/// Releases the collectives whose lanes have all arrived.
inline bool release_collectives() {
    bool progress = false;
    for (unsigned w = 0; w < block.warps.size(); w++) {
        const unsigned first = w * WARP, lanes = std::min(WARP, block.count - first);
        for (unsigned i = 0; i < lanes; i++) {
            Thread &leader = *block.threads[first + i];
            if (leader.state != State::at_collective) continue;
            bool all = true;
            for (unsigned l = 0; l < WARP; l++) {
                if (!(leader.mask >> l & 1)) continue;
                block.current = &leader;
                if (l >= lanes || block.threads[first + l]->state == State::finished)
                    fail("a collective waits for a lane that is not there", leader.site, leader.line);
                Thread &other = *block.threads[first + l];
                all = all && other.state == State::at_collective;
                if (!all) break;
                if (other.mask != leader.mask || other.line != leader.line ||
                    std::strcmp(other.site, leader.site) != 0)
                    fail("lanes of one warp wait at different collectives", leader.site, leader.line);
            }
            if (!all) continue;
            for (unsigned l = 0; l < lanes; l++) {
                if (!(leader.mask >> l & 1)) continue;
                Thread &other = *block.threads[first + l];
                std::memcpy(block.warps[w].lanes[l], other.payload, PAYLOAD);
                other.state = State::runnable;
            }
            block.warps[w].epoch += leader.fence;
            progress = true;
        }
    }
    return progress;
}

/// Releases the block's barrier once every thread is there.
inline bool release_barrier() {
    Thread *first = nullptr;
    unsigned waiting = 0, finished = 0;
    for (unsigned i = 0; i < block.count; i++) {
        Thread &thread = *block.threads[i];
        finished += thread.state == State::finished;
        if (thread.state != State::at_barrier) continue;
        waiting++;
        if (!first) first = &thread;
        block.current = &thread;
        if (thread.line != first->line || std::strcmp(thread.site, first->site) != 0)
            fail("threads of one block wait at different barriers", thread.site, thread.line);
    }
    if (waiting == 0 || waiting + finished < block.count) return false;
    if (finished > 0) fail("a barrier that finished threads never reach", first->site, first->line);
    block.epoch++;
    for (unsigned i = 0; i < block.count; i++) block.threads[i]->state = State::runnable;
    return true;
}

inline uint64_t next_random() {
    shuffle_state = shuffle_state * 6364136223846793005u + 1442695040888963407u;
    return shuffle_state >> 33;
}

/// The numbers 0 to `count` in today's order.
inline void turns(unsigned count, std::vector<unsigned> &out) {
    out.resize(count);
    for (unsigned i = 0; i < count; i++) out[i] = order == Order::reverse ? count - 1 - i : i;
    if (order != Order::shuffled) return;
    for (unsigned i = count; i > 1; i--) std::swap(out[i - 1], out[next_random() % i]);
}

inline void thread_main() {
    block.body();
    block.current->state = State::finished;
    leave(block.current->fiber.context, block.scheduler);
}

inline void run_block() {
    block.shared.clear();
    block.epoch = 0;
    block.warps.assign((block.count + WARP - 1) / WARP, Warp{});
    for (unsigned i = 0; i < block.count; i++) {
        if (block.threads.size() <= i) block.threads.push_back(std::make_unique<Thread>());
        Thread &thread = *block.threads[i];
        const Dim &size = block.size;
        thread.linear = i;
        thread.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
        thread.state = State::runnable;
        thread.accesses = Accesses();
        thread.fiber.start(thread_main);
    }
    std::vector<unsigned> turn;
    for (;;) {
        bool progress = false, alive = false;
        turns(block.count, turn);
        for (unsigned i : turn) {
            Thread &thread = *block.threads[i];
            if (thread.state != State::runnable) continue;
            block.current = &thread;
            switch_to(block.scheduler, thread.fiber.context);
            progress = true;
        }
        progress |= release_collectives();
        progress |= release_barrier();
        for (unsigned i = 0; i < block.count; i++)
            alive |= block.threads[i]->state != State::finished;
        if (!alive) break;
        if (!progress) {
            for (unsigned i = 0; i < block.count; i++) {
                block.current = block.threads[i].get();
                if (block.current->state != State::finished)
                    fail("threads wait for each other", block.current->site, block.current->line);
            }
        }
    }
    block.current = nullptr;
    conflicts.count_block();
}

inline std::mutex one_launch;

/// A kernel by its name: what a driver finds in a module.
struct Kernel {
    const char *name;
    /// Threads of a block, and perhaps what else its launch bounds say.
    std::vector<unsigned> bounds;
    /// One thread's run over a copy of the arguments.
    Run (*bind)(const void *arguments);

    static std::map<std::string, const Kernel *> &all() {
        static std::map<std::string, const Kernel *> kernels;
        return kernels;
    }

    Kernel(const char *name, std::vector<unsigned> bounds, Run (*bind)(const void *))
        : name(name), bounds(std::move(bounds)), bind(bind) {
        all()[name] = this;
    }
};

/// Runs a kernel of this name in every thread.
inline void launch(const char *name, Dim grid, Dim size, Run body) {
    const std::lock_guard lock(one_launch);
    conflicts.begin(name);
    block.grid = grid;
    block.size = size;
    block.count = size.x * size.y * size.z;
    block.body = std::move(body);
    std::vector<unsigned> turn;
    turns(grid.x * grid.y * grid.z, turn);
    for (unsigned i : turn) {
        block.index = {i % grid.x, i / grid.x % grid.y, i / (grid.x * grid.y)};
        run_block();
    }
}

/// A shared array: what a pointer into `__shared__` memory is on a GPU, with every access checked.
template <class T>
class Shared {
  public:
    Shared(SharedBlock *owner, size_t size) : owner_(owner), offset_(0), size_(size) {}

    class Element {
      public:
        Element(const Shared &array, size_t at) : array_(array), at_(at) {}
        operator T() const { return array_.load(at_); }
        T operator=(T value) const { return array_.store(at_, value), value; }
        T operator=(const Element &other) const { return *this = T(other); }
        T operator+=(T value) const { return *this = T(*this) + value; }

      private:
        const Shared &array_;
        size_t at_;
    };

    Element operator[](size_t at) const { return Element(*this, at); }

    /// The array from an element on.
    Shared operator+(size_t by) const {
        if (by > size_) fail("a shared array left behind");
        Shared rest = *this;
        rest.offset_ += by;
        rest.size_ -= by;
        return rest;
    }

    T load(size_t at) const {
        check(at);
        touch(at, Accesses::load);
        const Access &write = owner_->writes[offset_ + at];
        if (write.thread == Access::nobody) fail("shared memory read before it is written");
        if (!ordered(write, false)) fail("a race: shared memory read without a barrier after a write");
        note(owner_->reads[offset_ + at], false);
        T value;
        std::memcpy(&value, owner_->bytes.get() + (offset_ + at) * sizeof(T), sizeof(T));
        return value;
    }

    void store(size_t at, T value, bool atomic = false) const {
        check(at);
        touch(at, atomic ? Accesses::add : Accesses::store);
        Access &write = owner_->writes[offset_ + at], &read = owner_->reads[offset_ + at];
        if (!ordered(write, atomic)) fail("a race: two threads write shared memory without a barrier");
        if (!ordered(read, false)) fail("a race: shared memory written without a barrier after a read");
        write = Access{};
        note(write, atomic);
        std::memcpy(owner_->bytes.get() + (offset_ + at) * sizeof(T), &value, sizeof(T));
    }

    T add(size_t at, T value) const {
        check(at);
        const Access &write = owner_->writes[offset_ + at];
        if (write.thread == Access::nobody) fail("shared memory read before it is written");
        T old;
        std::memcpy(&old, owner_->bytes.get() + (offset_ + at) * sizeof(T), sizeof(T));
        store(at, old + value, true);
        return old;
    }

  private:
    void check(size_t at) const {
        if (at >= size_) fail("an access outside a shared array");
    }

    void touch(size_t at, Accesses::Kind kind) const {
        if (!conflicts.counts()) return;
        Thread &self = *block.current;
        conflicts.touch(self.accesses, self.linear, owner_->key, kind, (offset_ + at) * sizeof(T), sizeof(T));
    }

    /// Whether a barrier lies between an access and now, or it cannot conflict.
    static bool ordered(const Access &then, bool atomic) {
        if (then.thread == Access::nobody || then.block_epoch != block.epoch) return true;
        if (then.thread == int(block.current->linear) || (then.atomic && atomic)) return true;
        return then.warp == block.current->linear / WARP && then.warp_epoch != warp().epoch;
    }

    static void note(Access &access, bool atomic) {
        const int self = int(block.current->linear);
        const unsigned own = block.current->linear / WARP;
        const bool fresh = access.thread == Access::nobody || access.block_epoch != block.epoch ||
                           (access.warp == own && access.warp_epoch != warp().epoch);
        if (fresh || access.thread == self) {
            access = {self, own, block.epoch, warp().epoch, atomic};
        } else {
            // Several threads since the last barrier; of several warps, no __syncwarp orders them.
            if (access.warp != own) access.warp = ~0u;
            access.thread = Access::several;
        }
    }

    SharedBlock *owner_;
    size_t offset_, size_;
};

/// The block's array of this declaration.
template <class T>
inline Shared<T> shared_array(const void *key, size_t count) {
    for (auto &known : block.shared)
        if (known->key == key) return Shared<T>(known.get(), count);
    auto fresh = std::make_unique<SharedBlock>();
    fresh->key = key;
    fresh->bytes = std::make_unique<unsigned char[]>(count * sizeof(T));
    fresh->writes.resize(count);
    fresh->reads.resize(count);
    block.shared.push_back(std::move(fresh));
    return Shared<T>(block.shared.back().get(), count);
}

}  // namespace emulator

#define threadIdx (::emulator::block.current->index)
#define blockIdx (::emulator::block.index)
#define blockDim (::emulator::block.size)
#define gridDim (::emulator::block.grid)

#define __syncthreads() ::emulator::barrier(__FILE__, __LINE__)
#define __syncwarp() ::emulator::sync_warp(__FILE__, __LINE__)
#define __shfl_sync(mask, value, source) ::emulator::shfl(mask, value, source, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
    ::emulator::shfl(mask, value, ::emulator::lane() ^ (bits), __FILE__, __LINE__)
#define __shfl_up_sync(mask, value, by) ::emulator::shfl_up(mask, value, by, __FILE__, __LINE__)
#define __ballot_sync(mask, vote) ::emulator::ballot(mask, vote, __FILE__, __LINE__)

namespace emulator {

inline void sync_warp(const char *site, int line) {
    int all[WARP];
    collect(~0u, 0, all, site, line, true);
}

template <class T>
inline T shfl(unsigned mask, T value, unsigned source, const char *site, int line) {
    return shuffle(mask, value, source % WARP, true, site, line);
}

template <class T>
inline T shfl_up(unsigned mask, T value, unsigned by, const char *site, int line) {
    return shuffle(mask, value, lane() - by, by <= lane(), site, line);
}

inline unsigned ballot(unsigned mask, bool vote, const char *site, int line) {
    bool all[WARP];
    collect(mask, vote, all, site, line);
    unsigned votes = 0;
    for (unsigned i = 0; i < WARP; i++) votes |= unsigned((mask >> i & 1) && all[i]) << i;
    return votes;
}

}  // namespace emulator

inline void __threadfence() {}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
/// Bytes of `a`, which are numbers 0 to 3, and `b`, that the lower four nibbles of `selector` name.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned bytes = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned from = selector >> 4 * i & 7;
        bytes |= ((from < 4 ? a : b) >> from % 4 * 8 & 255) << 8 * i;
    }
    return bytes;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)a * b >> 64); }
inline float __uint_as_float(unsigned x) { float f; return std::memcpy(&f, &x, 4), f; }
inline int64_t __double_as_longlong(double d) { int64_t x; return std::memcpy(&x, &d, 8), x; }
inline unsigned __float_as_uint(float f) { unsigned x; return std::memcpy(&x, &f, 4), x; }
inline unsigned atomicAdd(unsigned *at, unsigned by) { return (*at += by) - by; }
