// A thread of control with a stack of its own, which the address sanitizer is told about.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

#if defined(__x86_64__)
extern "C" void emulator_switch(void **save, void *load);
// Saves the callee-saved registers on the stack, swaps stacks, and restores the other's.
__asm__(R"(
.text
.weak emulator_switch
.type emulator_switch,@function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch,.-emulator_switch
)");
#endif

/// A stack and where its execution stands.
struct Context {
#if defined(__x86_64__)
    void *stack_pointer = nullptr;
#else
    ucontext_t registers;
#endif
    void *stack = nullptr;  // null for the program's own stack
    size_t size = 0;
    void *fake_stack = nullptr;
};

inline Context *&came_from() {
    static Context *context = nullptr;
    return context;
}

inline void swap(Context &from, Context &to) {
#if defined(__x86_64__)
    emulator_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.registers, &to.registers);
#endif
}

/// To be called first thing on a stack.
inline void arrived(Context *self) {
#if defined(__SANITIZE_ADDRESS__)
    Context &other = *came_from();
    const void *stack = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(self ? self->fake_stack : nullptr, &stack, &size);
    if (!other.stack) {
        other.stack = const_cast<void *>(stack);
        other.size = size;
    }
#else
    (void)self;
#endif
}

/// Suspends `from` and goes on with `to`.
inline void switch_to(Context &from, Context &to) {
    came_from() = &from;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.size);
#endif
    swap(from, to);
    arrived(&from);
}

/// Goes on with `to` for good.
[[noreturn]] inline void leave(Context &from, Context &to) {
    came_from() = &from;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, to.stack, to.size);
#endif
    swap(from, to);
    std::abort();
}

class Fiber {
  public:
    Context context;

    Fiber() {
        context.size = 256 * 1024;
        context.stack = mmap(nullptr, context.size, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (context.stack == MAP_FAILED) std::abort();
    }
    ~Fiber() { munmap(context.stack, context.size); }
    Fiber(const Fiber &) = delete;
    Fiber &operator=(const Fiber &) = delete;

    /// Makes the next switch here enter `main`, which must end in `leave`.
    void start(void (*main)()) {
        entry() = main;
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(context.stack, context.size);
#endif
#if defined(__x86_64__)
        void **top = reinterpret_cast<void **>(static_cast<char *>(context.stack) + context.size);
        *--top = nullptr;  // keeps the stack aligned as after a call
        *--top = reinterpret_cast<void *>(&begin);
        for (int i = 0; i < 6; i++) *--top = nullptr;
        context.stack_pointer = top;
#else
        getcontext(&context.registers);
        context.registers.uc_stack.ss_sp = context.stack;
        context.registers.uc_stack.ss_size = context.size;
        context.registers.uc_link = nullptr;
        makecontext(&context.registers, &begin, 0);
#endif
    }

  private:
    static void (*&entry())() {
        static void (*main)() = nullptr;
        return main;
    }
    static void begin() {
        arrived(nullptr);
        entry()();
    }
};

}  // namespace emulator
