// What every kernel stands on: number types, 16-byte loads, where rows lie, and teams of threads that share a row.
//
// There are no headers: NVRTC needs none, and neither does a C++ compiler that brings its own definitions of CUDA's
// words (the tests do, and so run this very source on a CPU).

typedef long long i64;
typedef unsigned long long u64;

#define D __device__ __forceinline__
// Arguments stay where they are handed over: a reference to them must not make a copy on the stack.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
#define ARGUMENTS const __grid_constant__ Arguments
#else
#define ARGUMENTS const Arguments
#endif

enum {
  BLOCK = 256,        // threads of a block
  SEGMENT = 1 << 14,  // classes after which the accumulators of a row start anew
  IN_FLIGHT = 4,      // loads of 16 bytes that a thread has on the way
};

// --- numbers --------------------------------------------------------------------------------------

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

// 16-bit numbers are computed with as float32.
template <class T> struct compute { typedef float type; };
template <> struct compute<double> { typedef double type; };

template <class C> struct limits;
template <> struct limits<float> {
  static D float lowest() { return -3.402823466e38f; }
  static D float smallest() { return 1.17549435e-38f; }  // above 0, with all its digits
  static D float floor() { return -1000.0f; }  // 2^floor is 0, and floor times 0 is 0
  static D float inf() { return __uint_as_float(0x7f800000u); }
  static D float nan() { return __uint_as_float(0x7fc00000u); }
};
template <> struct limits<double> {
  static D double lowest() { return -1.7976931348623157e308; }
  static D double floor() { return -2000.0; }
  static D double inf() { return __longlong_as_double(0x7ff0000000000000ll); }
  static D double nan() { return __longlong_as_double(0x7ff8000000000000ll); }
};

#ifdef __CUDA_ARCH__
D float reciprocal(float v) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v)); return r; }  // of normal numbers
D double reciprocal(double v) {
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(v));
#pragma unroll
  for (int i = 0; i < 3; ++i) r = fma(r, fma(-v, r, 1.0), r);  // a division would be a call
  return r;
}
D float approximate_exp2(float t) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(t)); return r; }
D float widened(float16 h) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h.bits)); return r; }
D void narrow(float v, float16 &h) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v)); }
#else
D float reciprocal(float v) { return shim_rcp(v); }
D double reciprocal(double v) { return 1 / v; }
D float approximate_exp2(float t) { return shim_ex2(t); }
D float widened(float16 h) { return shim_half_to_float(h.bits); }
D void narrow(float v, float16 &h) { h.bits = shim_float_to_half(v); }
#endif
// The instruction has no subnormal numbers; what rows with a clear winner say is in sums of such.
D float exp2_of(float t) {
  const bool small = t < -126.0f;
  const float e = approximate_exp2(small ? 0.5f * t : t);
  return small ? e * e : e;
}
D double exp2_of(double t) { return exp2(t); }
D float widened(float v) { return v; }
D double widened(double v) { return v; }
D float widened(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }
D void narrow(float v, float &r) { r = v; }
D void narrow(double v, double &r) { r = v; }
D void narrow(float v, bfloat16 &r) {
  unsigned u = __float_as_uint(v);
  // To the nearest, ties to even; a NaN must not be rounded to infinity.
  r.bits = v != v ? 0x7fc0 : (unsigned short)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

// A product that is rounded by itself, whatever is added to it: what is alike must differ by exactly 0.
D float product(float a, float b) { return __fmul_rn(a, b); }
D double product(double a, double b) { return __dmul_rn(a, b); }

D bool is_finite(float v) { return fabsf(v) < limits<float>::inf(); }
D bool is_finite(double v) { return fabs(v) < limits<double>::inf(); }
D float log1p_of(float v) { return log1pf(v); }
D double log1p_of(double v) { return log1p(v); }
D float tanh_of(float v) { return tanhf(v); }
D double tanh_of(double v) { return tanh(v); }
D float larger(float a, float b) { return fmaxf(a, b); }  // of a number and NaN: the number
D double larger(double a, double b) { return fmax(a, b); }
D float fused(float a, float b, float c) { return fmaf(a, b, c); }  // a·b + c, rounded once
D double fused(double a, double b, double c) { return fma(a, b, c); }
D float smaller(float a, float b) { return fminf(a, b); }
D double smaller(double a, double b) { return fmin(a, b); }
D float magnitude(float v) { return fabsf(v); }
D double magnitude(double v) { return fabs(v); }

// --- polynomials in float32 -----------------------------------------------------------------------------

template <int N> D float polynomial(float x, const float (&c)[N]) {
  float r = c[N - 1];
#pragma unroll
  for (int i = N - 2; i >= 0; --i) r = fmaf(r, x, c[i]);
  return r;
}

#define LN2 0.693147181f

// (2^-d - 1 + d·log 2)/d² for |d| <= 1
D float exp2_tail(float d) {
  const float c[] = {EXP2_TAIL_F32};
  return polynomial(d, c);
}

// 2^t - 1 for -1 <= t <= 0, with the digits that 2^t has not
D float excess_of(float t) { return t * fmaf(t, exp2_tail(-t), LN2); }

// --- vectors: 16 bytes of numbers -------------------------------------------------------------------

template <class T> struct vector_of { static const int size = 16 / sizeof(T); };

D void unpack(const uint4 &u, const float *, float (&v)[4]) {
  v[0] = __uint_as_float(u.x); v[1] = __uint_as_float(u.y); v[2] = __uint_as_float(u.z); v[3] = __uint_as_float(u.w);
}
D double joined(unsigned low, unsigned high) { return __longlong_as_double((i64)((u64)low | (u64)high << 32)); }
D void unpack(const uint4 &u, const double *, double (&v)[2]) { v[0] = joined(u.x, u.y); v[1] = joined(u.z, u.w); }
template <class T> D void unpack(const uint4 &u, const T *, float (&v)[8]) {
  const unsigned words[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    T low = {(unsigned short)(words[i] & 0xffffu)}, high = {(unsigned short)(words[i] >> 16)};
    v[2 * i] = widened(low);
    v[2 * i + 1] = widened(high);
  }
}

D uint4 packed(const float *, const float (&v)[4]) {
  return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3]));
}
D uint4 packed(const double *, const double (&v)[2]) {
  u64 a = (u64)__double_as_longlong(v[0]), b = (u64)__double_as_longlong(v[1]);
  return make_uint4((unsigned)a, (unsigned)(a >> 32), (unsigned)b, (unsigned)(b >> 32));
}
// Two at once: newer machines have an instruction for it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
D unsigned pair_of(float low, float high, float16) { unsigned r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
D unsigned pair_of(float low, float high, bfloat16) { unsigned r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
#else
template <class T> D unsigned pair_of(float low, float high, T) {
  T a, b;
  narrow(low, a);
  narrow(high, b);
  return (unsigned)a.bits | (unsigned)b.bits << 16;
}
#endif
template <class T> D uint4 packed(const T *, const float (&v)[8]) {
  const T type = {0};
  return make_uint4(pair_of(v[0], v[1], type), pair_of(v[2], v[3], type), pair_of(v[4], v[5], type), pair_of(v[6], v[7], type));
}

// 16 bytes at once, and past the caches: what is written is not read again. (Assigned, they would be stored in four parts.)
template <class T, class C> D void store_vector(T *p, const C (&v)[vector_of<T>::size]) { __stcs((uint4 *)p, packed((const T *)p, v)); }

// Which classes an array of numbers belongs to: WIDTH side by side at a time, `apart` from one such group to the next.
template <int WIDTH> struct Places {
  i64 first;
  int apart;

  D int offset(int j) const { return j / WIDTH * apart + j % WIDTH; }
  D i64 at(int j) const { return first + offset(j); }

  // The offset of a class, or -1 where it is out of reach of any.
  D int find(i64 c) const { return c >= first && c - first < (1 << 30) ? (int)(c - first) : -1; }
};

// The same of all vectors of an array of numbers, to their places in a row.
template <class T, int W, class C, int N> D void store_vectors(T *row, const Places<W> &places, const C (&v)[N]) {
#pragma unroll
  for (int j = 0; j + vector_of<T>::size <= N; j += vector_of<T>::size) {
    C one[vector_of<T>::size];
#pragma unroll
    for (int i = 0; i < vector_of<T>::size; ++i) one[i] = v[j + i];
    store_vector(row + places.at(j), one);
  }
}

// How many numbers lie before the first 16-byte boundary, of k in all.
template <class T> D int before_boundary(const T *p, i64 k) {
  int numbers = (int)((16 - ((u64)p & 15)) & 15) / (int)sizeof(T);
  return k < numbers ? (int)k : numbers;
}

// --- where numbers lie ------------------------------------------------------------------------------

// An array of shape batch + (k,): its batch axes are merged where they lie in memory like one.
struct Operand {
  void *data;
  i64 class_stride;  // in elements, as all strides
  int dtype, axes;
  i64 shape[4], stride[4];
};

D i64 row_start(const Operand &o, i64 row) {
  i64 at = 0;
#pragma unroll
  for (int i = 3; i > 0; --i) {
    if (i < o.axes) {
      i64 rest = row / o.shape[i];
      at += (row - rest * o.shape[i]) * o.stride[i];
      row = rest;
    }
  }
  return at + row * o.stride[0];
}

// dtypes that are found out at run time: for one number per row, and for the careful kernels
enum { FLOAT32, FLOAT64, FLOAT16, BFLOAT16, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64 };

D i64 load_integer(const Operand &o, i64 at) {
  switch (o.dtype) {
    case INT8: return ((const signed char *)o.data)[at];
    case INT16: return ((const short *)o.data)[at];
    case INT32: return ((const int *)o.data)[at];
    case UINT8: return ((const unsigned char *)o.data)[at];
    case UINT16: return ((const unsigned short *)o.data)[at];
    case UINT32: return ((const unsigned *)o.data)[at];
    default: return ((const i64 *)o.data)[at];  // uint64 too: what is beyond int64 is negative, and out of range as that
  }
}

// --- clusters: blocks that share a row ---------------------------------------------------------------

// Blocks of a launch that asks for clusters run at the same time, wait for each other, and write to each other's shared
// memory. Before sm_90 there are none, and there, as in any other launch, a block is a cluster by itself.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
D int cluster_size() { int n; asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(n)); return n; }
D int cluster_rank() { int r; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r)); return r; }
// What was written before it, by any block and to any, all of them see after it. (It empties the first-level cache.)
D void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Where another block has what this one has at `mine`, in dynamic shared memory.
template <class T> D T *in_block(T *mine, int rank) {
  u64 there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"((u64)mine), "r"(rank));
  return (T *)there;
}
#elif defined(__CUDA_ARCH__)
D int cluster_size() { return 1; }
D int cluster_rank() { return 0; }
D void cluster_barrier() { __syncthreads(); }
template <class T> D T *in_block(T *mine, int) { return mine; }
#endif
#ifdef __CUDA_ARCH__
#define DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
#endif

// --- teams: threads of a block that share a row -----------------------------------------------------

struct Team {
  int size, lane;  // a power of two up to BLOCK; this thread's place in it
};

// The rows that a team does of n: `for (const auto [team, row, real] : Rows(n, size))`. All threads of a block go the same
// way: those without a row of their own do the last one too, which then is not `real`, and write nothing.
struct Rows {
  struct Row {
    Team team;
    i64 row;
    bool real;
  };
  i64 n, first;  // of the block's teams
  int size;
  bool in_clusters;  // whether all blocks of a cluster have the same rows

  D Rows(i64 n, int size, bool in_clusters = false) : n(n), size(size), in_clusters(in_clusters) { first = rows_of(blockIdx.x); }
  D i64 rows_of(unsigned blocks) const { return (i64)(in_clusters ? blocks / (unsigned)cluster_size() : blocks) * (BLOCK / size); }
  D Rows begin() const { return *this; }
  D int end() const { return 0; }
  D bool operator!=(int) const { return first < n; }
  D void operator++() { first += rows_of(gridDim.x); }
  D Row operator*() const {
    const int thread = (int)threadIdx.x;
    const i64 mine = first + thread / size;
    return {{size, thread & (size - 1)}, mine < n ? mine : n - 1, mine < n};
  }
};

D i64 segment_end(i64 low, i64 end) { return low + SEGMENT < end ? low + SEGMENT : end; }

// Joins the records of a team's threads; every thread gets the whole. `Record` has join(other) and shuffled(lanes).
// All threads of the block must come here together.
template <class Record> D Record joined_by(const Team &team, Record r) {
  const int within = team.size < 32 ? team.size : 32;
  for (int apart = within >> 1; apart > 0; apart >>= 1) r.join(r.shuffled(apart));
  __syncwarp();  // shuffles order no memory: what a lane has read of a row, another may write from here on
  if (team.size > 32) {
    __shared__ Record of_warps[BLOCK / 32];
    const int warp = threadIdx.x >> 5, warps = team.size >> 5, first = warp & ~(warps - 1);
    __syncthreads();  // the last reader of what was there before
    if ((threadIdx.x & 31) == 0) of_warps[warp] = r;
    __syncthreads();
    r = of_warps[first];
    for (int w = 1; w < warps; ++w) r.join(of_warps[first + w]);
  }
  return r;
}

D float from_lane(float v, int apart) { return __shfl_xor_sync(0xffffffffu, v, apart); }
D double from_lane(double v, int apart) { return __shfl_xor_sync(0xffffffffu, v, apart); }
D int from_lane(int v, int apart) { return __shfl_xor_sync(0xffffffffu, v, apart); }
D i64 from_lane(i64 v, int apart) { return __shfl_xor_sync(0xffffffffu, v, apart); }

// --- sweeps: a team's way over the classes of a row -------------------------------------------------

// Numbers that are visited at once: as many as keep their registers.
enum { AT_ONCE = 8 };

template <int N> D void load_vectors(const uint4 *v, int apart, uint4 (&u)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) u[j] = v[j * apart];
}

// The numbers of some of the vectors, from `first` on.
template <int VECTORS, class T, class C, int N> D void unpack_vectors(const uint4 (&u)[VECTORS], int first, const T *type, C (&values)[N]) {
  const int width = vector_of<T>::size;
#pragma unroll
  for (int j = 0; j < N / width; ++j) {
    C one[width];
    unpack(u[first + j], type, one);
#pragma unroll
    for (int i = 0; i < width; ++i) values[j * width + i] = one[i];
  }
}

// Visits classes low … high - 1 that lie side by side: 16 bytes at a time, several loads on the way at once, and
// singly what lies before the first boundary and after the last. `visit(places, values)` gets arrays of numbers; each
// thread meets its classes in ascending order.
template <class T, class Visit>
D void sweep_line(const T *row, i64 low, i64 high, const Team &team, Visit &visit) {
  typedef typename compute<T>::type C;
  const int N = vector_of<T>::size, GROUP = AT_ONCE / N < IN_FLIGHT ? AT_ONCE / N : IN_FLIGHT;
  const int head = before_boundary(row + low, high - low);
  const i64 first = low + head;
  const int vectors = (int)((high - first) / N);
  const uint4 *v = (const uint4 *)(row + first);
  for (i64 c = low + team.lane; c < first; c += team.size) {  // up to 7 numbers, of a team that may have 4 threads
    C one[1] = {widened(row[c])};
    visit(Places<1>{c, 0}, one);
  }
  // While some vectors are computed with, the next are on their way.
  const int step = IN_FLIGHT * team.size, last = vectors - (IN_FLIGHT - 1) * team.size;
  int i = team.lane;
  uint4 coming[IN_FLIGHT];
  if (i < last) load_vectors(v + i, team.size, coming);
  while (i < last) {
    uint4 u[IN_FLIGHT];
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; ++j) u[j] = coming[j];
    if (i + step < last) load_vectors(v + i + step, team.size, coming);
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; j += GROUP) {
      C values[GROUP * N];
      unpack_vectors(u, j, row, values);
      visit(Places<N>{first + ((i64)i + j * team.size) * N, team.size * N}, values);
    }
    i += step;
  }
#pragma unroll 1
  for (; i < vectors; i += team.size) {
    C values[N];
    unpack(v[i], row, values);
    visit(Places<N>{first + (i64)i * N, 0}, values);
  }
  for (i64 c = first + (i64)vectors * N + team.lane; c < high; c += team.size) {
    C one[1] = {widened(row[c])};
    visit(Places<1>{c, 0}, one);
  }
}

// The same for classes a stride apart, and for short rows: neighbouring threads take neighbouring classes, one by one.
// What lies beyond the last class is -inf.
template <class T, class Visit>
D void sweep_apart(const T *row, i64 stride, i64 low, i64 high, const Team &team, Visit &visit) {
  typedef typename compute<T>::type C;
  for (i64 c = low + team.lane; c < high; c += IN_FLIGHT * team.size) {
    const Places<1> places = {c, team.size};
    C values[IN_FLIGHT];
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; ++j) values[j] = places.at(j) < high ? (C)widened(row[places.at(j) * stride]) : -limits<C>::inf();
    visit(places, values);
  }
}

// Rows of fewer bytes gain nothing from vectors: most of a row would lie before and after them.
template <class T> D bool in_line(const Operand &o, i64 k) { return o.class_stride == 1 && k * (i64)sizeof(T) >= 256; }

template <class T, class Visit> D void sweep(const Operand &o, const T *x, i64 low, i64 high, i64 k, const Team &team, Visit &visit) {
  if (in_line<T>(o, k)) {
    sweep_line(x, low, high, team, visit);
  } else {
    sweep_apart(x, o.class_stride, low, high, team, visit);
  }
}
