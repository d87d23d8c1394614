// CUDA C++ on the CPU: included before the source of kernels, it lets g++ compile and run them, one cluster of blocks at
// a time with one fiber per thread.
//
// A fiber runs until it waits: at `__syncthreads`, or at a warp operation until all lanes of its mask are there. Warp
// by warp, the lanes that can run do so in ascending order of their index, or descending (`cpusim::order`, of blocks
// too): a missing barrier gives a wrong result in one of the two. What would hang or be undefined on a device ends the
// launch with an error text: a barrier that not all threads reach, a warp operation that a lane of its mask does not
// reach, threads that meet at different lines or with different masks. A thread that has returned is an error only for
// those that wait for it.
//
// The blocks of a cluster take turns, in the same order: each runs until all of its threads wait at the cluster's
// barrier or have returned. Dynamic shared memory is NaN before a block begins and after it has returned, so that what
// others write too early, or read too late, is not there. `__shared__` variables are one for all blocks: they hold
// nothing over a cluster's barrier.
//
// Not modelled: blocks that run at the same time, atomicity, memory order, inline PTX (kept behind `__CUDA_ARCH__`).
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(CPUSIM_UCONTEXT)
#define CPUSIM_UCONTEXT
#endif
#ifdef CPUSIM_UCONTEXT
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) uint4 *name = static_cast<uint4 *>(cpusim::dynamic_shared)

struct alignas(8) uint2 {
    unsigned x, y;
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline uint3 threadIdx, blockIdx;  // of the fiber that runs
inline dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cpusim {

// --- fibers: a stack each, and a switch from one to another -----------------------------------------------------

#ifdef __SANITIZE_ADDRESS__
constexpr size_t stack_bytes = 256 << 10;  // its frames are larger
constexpr size_t beyond = 0;               // it sees an overrun itself
#else
constexpr size_t stack_bytes = 64 << 10;
constexpr size_t beyond = 256;  // bytes after the dynamic shared memory that must stay as they are
#endif
constexpr size_t guard_bytes = 4 << 10;  // no access: a stack that overflows faults

struct Fiber {
#ifdef CPUSIM_UCONTEXT
    ucontext_t context;
#else
    void *stack_pointer;
#endif
    char *stack;  // its lowest address, above the guard
    size_t stack_size;
    void *fake_stack;  // AddressSanitizer's own
};

void run_thread();  // what a fiber does

#ifdef CPUSIM_UCONTEXT

inline void prepare(Fiber &fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = fiber.stack_size;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_thread, 0);
}

inline void jump(Fiber &from, Fiber &to) { swapcontext(&from.context, &to.context); }

#else

// System V ABI: what a call must preserve is pushed, and popped from the other stack. It goes on by a jump, since the
// processor would predict a return to the caller on the old stack.
extern "C" void cpusim_jump(void **from, void *to) __attribute__((visibility("hidden")));
asm(R"(
    .text
    .hidden cpusim_jump
    .globl cpusim_jump
    .type cpusim_jump, @function
cpusim_jump:
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
    popq %rcx
    jmp *%rcx
    .size cpusim_jump, .-cpusim_jump
)");

inline void prepare(Fiber &fiber) {
    // Six registers, the address to return to, and its own return address, which keeps the stack aligned.
    void **top = reinterpret_cast<void **>(fiber.stack + fiber.stack_size) - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = reinterpret_cast<void *>(run_thread);
    fiber.stack_pointer = top;
}

inline void jump(Fiber &from, Fiber &to) { cpusim_jump(&from.stack_pointer, to.stack_pointer); }

#endif

inline void switch_fiber(Fiber &from, Fiber &to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_size);
    jump(from, to);
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#else
    jump(from, to);
#endif
}

// --- the blocks that run -----------------------------------------------------------------------------------------

enum Operation { SYNCWARP, SHFL, SHFL_XOR, SHFL_DOWN, SHFL_UP, BALLOT, ANY, ALL };
constexpr const char *operation_names[] = {"__syncwarp",    "__shfl_sync",   "__shfl_xor_sync", "__shfl_down_sync",
                                           "__shfl_up_sync", "__ballot_sync", "__any_sync",      "__all_sync"};

struct Lane {
    Fiber fiber;
    int line;  // of the source, where it waits
    Operation operation;
    bool cluster;  // whether it waits at the barrier of the cluster
    unsigned mask;
    int source;  // the lane that a shuffle reads
    uint64_t given, answer;
};

struct Warp {
    Lane lanes[32];
    unsigned live;  // a bit per lane, here and below: has not returned
    unsigned ready, at_operation, at_barrier;
};

constexpr unsigned max_threads = 1024, max_cluster = 8;

struct Block {
    Warp warps[max_threads / 32];
    uint3 index;
    unsigned char *shared;  // its dynamic shared memory
    bool waits;             // for the other blocks of its cluster
};

inline Block blocks[max_cluster];
inline unsigned cluster_size, rank;  // `rank`: of the block that runs
inline size_t shared_bytes;
inline Warp *warps;  // of that block, as all below
inline unsigned warp_count;
inline Warp *warp;  // of the thread that runs
inline unsigned lane;
inline Fiber scheduler;

inline int order = 0;
inline void *dynamic_shared;
inline void (*run_body)(void *);
inline void *body;

inline char error_text[512];

// --- errors ------------------------------------------------------------------------------------------------------

template <class... Values>
void fail(const char *format, Values... values) {
    if (error_text[0]) return;  // the first one counts
    const int length = snprintf(error_text, sizeof error_text, format, values...);
    if (length < 0 || length >= int(sizeof error_text)) return;
    snprintf(error_text + length, sizeof error_text - length, " (block %u, %u, %u)", blockIdx.x, blockIdx.y,
             blockIdx.z);
}

inline unsigned thread_index(const Warp &warp, unsigned lane) { return unsigned(&warp - warps) * 32 + lane; }

inline const char *barrier_name(const Lane &self) { return self.cluster ? "the cluster's barrier" : "__syncthreads"; }

struct Text {
    char text[128];
};

// Where a thread is, for an error text.
inline Text whereabouts(const Warp &warp, unsigned lane) {
    Text where;
    const Lane &self = warp.lanes[lane];
    const unsigned thread = thread_index(warp, lane), bit = 1u << lane;
    if (warp.at_operation & bit)
        snprintf(where.text, sizeof where.text, "thread %u is at %s of mask 0x%08x in line %d", thread,
                 operation_names[self.operation], self.mask, self.line);
    else if (warp.at_barrier & bit)
        snprintf(where.text, sizeof where.text, "thread %u is at %s in line %d", thread, barrier_name(self), self.line);
    else
        snprintf(where.text, sizeof where.text, "thread %u %s", thread,
                 thread < blockDim.x ? "has returned" : "is not in the block");
    return where;
}

// --- waiting -----------------------------------------------------------------------------------------------------

inline unsigned lowest(unsigned bits) { return unsigned(__builtin_ctz(bits)); }

inline void wait() { switch_fiber(warp->lanes[lane].fiber, scheduler); }

inline void barrier(int line, bool cluster = false) {
    warp->lanes[lane].line = line;
    warp->lanes[lane].cluster = cluster;
    warp->at_barrier |= 1u << lane;
    wait();
}

// A lane of the mask with which `self` does not meet, or 32.
inline unsigned missing(const Warp &warp, const Lane &self) {
    if (unsigned absent = self.mask & ~warp.at_operation) return lowest(absent);
    for (unsigned rest = self.mask; rest; rest &= rest - 1) {
        const Lane &other = warp.lanes[lowest(rest)];
        if (other.mask != self.mask || other.operation != self.operation || other.line != self.line)
            return lowest(rest);
    }
    return 32;
}

// The last lane to come answers for all of the mask, so that none reads what another has overwritten.
inline void answer(Warp &warp, unsigned mask) {
    unsigned votes = 0;
    for (unsigned rest = mask; rest; rest &= rest - 1)
        if (warp.lanes[lowest(rest)].given) votes |= 1u << lowest(rest);
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        Lane &self = warp.lanes[lowest(rest)];
        if (self.operation == BALLOT || self.operation == ANY || self.operation == ALL) {
            self.answer = votes;
        } else {
            if (!(mask >> self.source & 1))
                fail("line %d: thread %u reads lane %d by %s, which is not in its mask 0x%08x", self.line,
                     thread_index(warp, lowest(rest)), self.source, operation_names[self.operation], mask);
            self.answer = warp.lanes[self.source].given;
        }
    }
    warp.at_operation &= ~mask;
    warp.ready |= mask;
}

inline uint64_t meet(Operation operation, unsigned mask, uint64_t given, unsigned source, int line) {
    Lane &self = warp->lanes[lane];
    self.operation = operation;
    self.mask = mask;
    self.given = given;
    self.source = int(source);
    self.line = line;
    warp->at_operation |= 1u << lane;
    if (!(mask >> lane & 1))
        fail("line %d: thread %u calls %s with mask 0x%08x, which lacks its lane", line, thread_index(*warp, lane),
             operation_names[operation], mask);
    else if (missing(*warp, self) == 32)
        answer(*warp, mask);
    wait();
    return self.answer;
}

// --- the schedule ------------------------------------------------------------------------------------------------

inline void run_thread() {
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &scheduler.stack_size);
    scheduler.stack = static_cast<char *>(const_cast<void *>(bottom));
#endif
    run_body(body);
    warp->live &= ~(1u << lane);
    wait();
}

// Runs the lanes of a warp until all wait at the block's barrier or have returned.
inline void run_warp(Warp &running) {
    warp = &running;
    while (running.ready) {
        for (unsigned sweep = running.ready; sweep; sweep &= ~(1u << lane)) {
            lane = order ? 31 - unsigned(__builtin_clz(sweep)) : lowest(sweep);
            running.ready &= ~(1u << lane);
            threadIdx.x = thread_index(running, lane);
            switch_fiber(scheduler, running.lanes[lane].fiber);
            if (error_text[0]) return;
        }
    }
    if (running.at_operation) {
        const unsigned waiting = lowest(running.at_operation);
        const Lane &self = running.lanes[waiting];
        fail("line %d: %s of mask 0x%08x waits in thread %u for lane %u, but %s", self.line,
             operation_names[self.operation], self.mask, thread_index(running, waiting), missing(running, self),
             whereabouts(running, missing(running, self)).text);
    }
}

// The lanes that the block has in a warp: all, but for the last warp.
inline unsigned lanes_of(const Warp &warp) {
    return &warp == warps + warp_count - 1 ? ~0u >> (warp_count * 32 - blockDim.x) : ~0u;
}

inline void open_barrier() {
    for (unsigned w = 0; w < warp_count; ++w) {
        warps[w].ready = warps[w].at_barrier;
        warps[w].at_barrier = 0;
    }
}

// A thread that waits at a barrier, or null.
inline const Lane *waiting_thread() {
    for (unsigned w = 0; w < warp_count; ++w)
        if (warps[w].at_barrier) return &warps[w].lanes[lowest(warps[w].at_barrier)];
    return nullptr;
}

// True when all threads have returned, or wait for other blocks. Otherwise all must be at one barrier, which opens.
inline bool finished() {
    const Warp *waiting = nullptr, *returned = nullptr;
    for (unsigned w = warp_count; w-- > 0;) {
        if (warps[w].at_barrier) waiting = &warps[w];
        if (warps[w].live != lanes_of(warps[w])) returned = &warps[w];
    }
    if (!waiting) return true;
    const unsigned first = lowest(waiting->at_barrier);
    const Lane &self = waiting->lanes[first];
    auto stuck = [&](const Warp &warp, unsigned lane) {
        fail("line %d: thread %u waits at %s, but %s", self.line, thread_index(*waiting, first), barrier_name(self),
             whereabouts(warp, lane).text);
    };
    if (returned) stuck(*returned, lowest(lanes_of(*returned) & ~returned->live));
    for (unsigned w = 0; w < warp_count; ++w)
        for (unsigned rest = warps[w].at_barrier; rest; rest &= rest - 1)
            if (warps[w].lanes[lowest(rest)].line != self.line) stuck(warps[w], lowest(rest));
    blocks[rank].waits = self.cluster;
    if (!self.cluster) open_barrier();
    return self.cluster;
}

// Unwritten memory shows: it is NaN.
inline void clear_shared() { memset(blocks[rank].shared, 0xff, shared_bytes + beyond); }

inline void begin_block() {
    clear_shared();
    for (unsigned w = 0; w < warp_count; ++w) {
        Warp &starting = warps[w];
        starting.live = starting.ready = lanes_of(starting);
        starting.at_operation = starting.at_barrier = 0;
        for (unsigned rest = starting.live; rest; rest &= rest - 1) prepare(starting.lanes[lowest(rest)].fiber);
    }
}

// Until the block has returned or waits for others.
inline void run_block() {
    blocks[rank].waits = false;
    do {
        for (unsigned w = 0; w < warp_count && !error_text[0]; ++w) run_warp(warps[order ? warp_count - 1 - w : w]);
    } while (!error_text[0] && !finished());
    if (error_text[0] || blocks[rank].waits) return;
    const unsigned char *shared = blocks[rank].shared;
    for (size_t b = shared_bytes; b < shared_bytes + beyond; ++b)
        if (shared[b] != 0xff) fail("byte %zu of the dynamic shared memory is written, of %zu", b, shared_bytes);
    clear_shared();
}

inline void choose(unsigned chosen) {
    rank = chosen;
    warps = blocks[rank].warps;
    blockIdx = blocks[rank].index;
    dynamic_shared = blocks[rank].shared;
}

// Applies `act` to each block of the cluster, in the order.
template <class Act>
void each_block(Act act) {
    for (unsigned i = 0; i < cluster_size && !error_text[0]; ++i) {
        choose(order ? cluster_size - 1 - i : i);
        act();
    }
}

// All blocks that wait must wait at one barrier, and none may have returned: it opens. False where none waits.
inline bool open_cluster() {
    const Lane *first = nullptr;
    unsigned of = 0;
    each_block([&] {
        if (const Lane *self = waiting_thread(); self && !first) first = self, of = rank;
    });
    if (!first) return false;
    each_block([&] {
        const Lane *self = waiting_thread();
        if (!self)
            fail("line %d: block %u of the cluster waits at its barrier, but block %u has returned", first->line, of,
                 rank);
        else if (self->line != first->line)
            fail("line %d: block %u of the cluster waits at its barrier, but block %u is at that in line %d",
                 first->line, of, rank, self->line);
        open_barrier();
    });
    return true;
}

inline void run_cluster() {
    bool begun = false;
    do {
        each_block([&] {
            if (!begun) begin_block();
            run_block();
        });
        begun = true;
    } while (!error_text[0] && open_cluster());
}

// --- launching ---------------------------------------------------------------------------------------------------

// Stacks are kept for the next launch. Their tops lie in different cache sets, of which a plain stride has only one.
inline bool allocate_stacks(unsigned threads) {
    static unsigned allocated_of[max_cluster];
    for (unsigned &allocated = allocated_of[rank]; allocated < threads; ++allocated) {
        void *memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                            -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, guard_bytes, PROT_NONE)) return false;
        Fiber &fiber = warps[allocated / 32].lanes[allocated % 32].fiber;
        fiber.stack = static_cast<char *>(memory) + guard_bytes;
        fiber.stack_size = stack_bytes - allocated * 5 % 64 * 64;
    }
    return true;
}

inline const char *launch_blocks(dim3 grid, unsigned threads, size_t bytes, unsigned cluster) {
    const uint64_t count = uint64_t(grid.x) * grid.y * grid.z;
    if (count == 0) return "the grid has no block";
    if (threads == 0 || threads > max_threads) return "a block has 1 to 1024 threads";
    if (cluster == 0 || cluster > max_cluster) return "a cluster has 1 to 8 blocks";
    if (grid.x % cluster != 0) return "the grid is cut by its last cluster";
    error_text[0] = 0;
    gridDim = grid;
    blockDim = dim3(threads);
    warp_count = (threads + 31) / 32;
    cluster_size = cluster;
    shared_bytes = bytes;
    each_block([&] {
        blocks[rank].shared = static_cast<unsigned char *>(malloc(bytes + beyond));
        if (!allocate_stacks(threads)) fail("no memory for the stacks of the threads");
    });
    for (uint64_t i = 0; i < count && !error_text[0]; i += cluster) {
        const uint64_t first = order ? count - cluster - i : i;
        for (unsigned b = 0; b < cluster; ++b) {
            const uint64_t index = first + b;
            blocks[b].index = {unsigned(index % grid.x), unsigned(index / grid.x % grid.y),
                               unsigned(index / grid.x / grid.y)};
        }
        run_cluster();
    }
    for (unsigned b = 0; b < cluster; ++b) {
        free(blocks[b].shared);
#ifdef __SANITIZE_ADDRESS__
        if (error_text[0])  // the fibers left behind did not clean up their frames
            for (unsigned t = 0; t < threads; ++t)
                __asan_unpoison_memory_region(blocks[b].warps[t / 32].lanes[t % 32].fiber.stack, stack_bytes);
#endif
    }
    return error_text[0] ? error_text : nullptr;
}

// Runs `body()` once per thread; the error text, or null.
template <class Body>
const char *launch(dim3 grid, unsigned threads, size_t shared_bytes, unsigned cluster, Body kernel) {
    body = &kernel;
    run_body = [](void *body) { (*static_cast<Body *>(body))(); };
    return launch_blocks(grid, threads, shared_bytes, cluster);
}

template <class To, class From>
To bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

template <class T>
T shuffle(Operation operation, unsigned mask, T value, unsigned source, int line) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    uint64_t moved = 0;
    memcpy(&moved, &value, sizeof value);
    moved = meet(operation, mask, moved, source, line);
    memcpy(&value, &moved, sizeof value);
    return value;
}

// Approximations err by a hash of the input's bits, in [-1, 1].
inline double unit_error(float x) {
    uint32_t h = bits<uint32_t>(x);
    h = (h ^ h >> 16) * 0x7feb352du;
    h = (h ^ h >> 15) * 0x846ca68bu;
    return int32_t(h ^ h >> 16) * 0x1p-31;
}

inline float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

}  // namespace cpusim

// --- CUDA's functions: block and warp ----------------------------------------------------------------------------

// The line by default argument: that of the call.
inline void __syncthreads(int line = __builtin_LINE()) { cpusim::barrier(line); }

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
    cpusim::meet(cpusim::SYNCWARP, mask, 0, cpusim::lane, line);
}

// A lane beyond the segment of `width` lanes is not read: the value is the lane's own.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
    const unsigned segment = cpusim::lane & ~unsigned(width - 1);
    return cpusim::shuffle(cpusim::SHFL, mask, value, segment | (unsigned(source) & unsigned(width - 1)), line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, int line = __builtin_LINE()) {
    const unsigned last = cpusim::lane | unsigned(width - 1), source = cpusim::lane ^ (unsigned(lane_mask) & 31);
    return cpusim::shuffle(cpusim::SHFL_XOR, mask, value, source <= last ? source : cpusim::lane, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    const unsigned last = cpusim::lane | unsigned(width - 1), source = cpusim::lane + (delta & 31);
    return cpusim::shuffle(cpusim::SHFL_DOWN, mask, value, source <= last ? source : cpusim::lane, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    const int first = int(cpusim::lane & ~unsigned(width - 1)), source = int(cpusim::lane) - int(delta & 31);
    return cpusim::shuffle(cpusim::SHFL_UP, mask, value, source >= first ? unsigned(source) : cpusim::lane, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return unsigned(cpusim::meet(cpusim::BALLOT, mask, predicate != 0, cpusim::lane, line));
}

inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return cpusim::meet(cpusim::ANY, mask, predicate != 0, cpusim::lane, line) != 0;
}

inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return cpusim::meet(cpusim::ALL, mask, predicate != 0, cpusim::lane, line) == mask;
}

// --- clusters: what the kernels have of PTX ----------------------------------------------------------------------

inline int cluster_size() { return int(cpusim::cluster_size); }
inline int cluster_rank() { return int(cpusim::rank); }
inline void cluster_barrier(int line = __builtin_LINE()) { cpusim::barrier(line, true); }

template <class T>
T *in_block(T *mine, int rank, int line = __builtin_LINE()) {
    const size_t offset = reinterpret_cast<unsigned char *>(mine) - cpusim::blocks[cpusim::rank].shared;
    if (offset >= cpusim::shared_bytes)
        cpusim::fail("line %d: thread %u looks for what is not in dynamic shared memory", line, threadIdx.x);
    else if (rank < 0 || rank >= cluster_size())
        cpusim::fail("line %d: thread %u looks for block %d of %d", line, threadIdx.x, rank, cluster_size());
    else
        return reinterpret_cast<T *>(cpusim::blocks[rank].shared + offset);
    cpusim::wait();  // for ever
    return mine;
}

// --- memory ------------------------------------------------------------------------------------------------------

// Blocks run one after another, and a fiber is never interrupted.
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T, class V>
T atomicAdd(T *address, V value) {
    const T old = *address;
    *address = static_cast<T>(old + static_cast<T>(value));
    return old;
}

template <class T>
T __ldg(const T *address) { return *address; }
template <class T>
T __ldcs(const T *address) { return *address; }
template <class T>
T __ldcg(const T *address) { return *address; }
template <class T>
void __stcs(T *address, T value) { *address = value; }

// --- bits and arithmetic -----------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

inline float __uint_as_float(unsigned x) { return cpusim::bits<float>(x); }
inline unsigned __float_as_uint(float x) { return cpusim::bits<unsigned>(x); }
inline float __int_as_float(int x) { return cpusim::bits<float>(x); }
inline int __float_as_int(float x) { return cpusim::bits<int>(x); }
inline double __longlong_as_double(long long x) { return cpusim::bits<double>(x); }
inline long long __double_as_longlong(double x) { return cpusim::bits<long long>(x); }

inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }

// Of mixed types as C++ adds them; of floats the one that is not NaN.
template <class A, class B>
constexpr auto min(A a, B b) {
    using T = decltype(a + b);
    if constexpr (T(0.5) == T(0))
        return T(b) < T(a) ? T(b) : T(a);
    else
        return T(fmin(T(a), T(b)));
}
template <class A, class B>
constexpr auto max(A a, B b) {
    using T = decltype(a + b);
    if constexpr (T(0.5) == T(0))
        return T(a) < T(b) ? T(b) : T(a);
    else
        return T(fmax(T(a), T(b)));
}

// --- PTX's approximations, as bad as documented ------------------------------------------------------------------

// ex2.approx.ftz.f32: a relative error of up to 2^-22.5 before the result is rounded; 2^0 is 1.
inline float shim_ex2(float x) {
    x = cpusim::flushed(x);
    if (x == 0) return 1;
    return cpusim::flushed(float(exp2(double(x)) * (1 + cpusim::unit_error(x) * 0x1.6a09e667f3bcdp-23)));
}

// lg2.approx.ftz.f32: an error of up to 2^-22, absolute between 1/2 and 2 and relative elsewhere.
inline float shim_lg2(float x) {
    x = cpusim::flushed(x);
    const double error = cpusim::unit_error(x) * 0x1p-22, result = log2(double(x));
    if (x == 0) return -INFINITY;
    return cpusim::flushed(float(x > 0.5f && x < 2 ? result + error : result * (1 + error)));
}

// rcp.approx.ftz.f32: a relative error of up to 2^-23 before the result is rounded.
inline float shim_rcp(float x) {
    x = cpusim::flushed(x);
    if (x == 0) return copysignf(INFINITY, x);
    return cpusim::flushed(float(1 / double(x) * (1 + cpusim::unit_error(x) * 0x1p-23)));
}

inline float shim_half_to_float(unsigned short x) { return float(cpusim::bits<_Float16>(x)); }
inline unsigned short shim_float_to_half(float x) { return cpusim::bits<unsigned short>(_Float16(x)); }
