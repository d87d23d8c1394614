// Two rows swept side by side, and float32 arithmetic whose rounding is kept: a sum and what its additions have lost.

struct Twofold {
  float high, low;

  // Of what is infinite nothing is left to keep.
  D float value() const { return is_finite(high) ? high + low : high; }

  // Exact but for the last bits of `low`: no product is involved that a compiler could fuse.
  D void add(float v) {
    const float sum = high + v, part = sum - high;
    low += (high - (sum - part)) + (v - part);
    high = sum;
  }
};

// a + b as a number and its rounding
D Twofold exact_sum(float a, float b) {
  Twofold r = {a, 0};
  r.add(b);
  return r;
}

// Several such sums, for a team's threads to join.
template <int N> struct TwofoldSums {
  Twofold sum[N];

  D void begin() {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = {0, 0};
  }

  D void join(const TwofoldSums &other) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum[i].add(other.sum[i].high);
      sum[i].low += other.sum[i].low;
    }
  }

  D TwofoldSums shuffled(int apart) const {
    TwofoldSums o;
#pragma unroll
    for (int i = 0; i < N; ++i) o.sum[i] = {from_lane(sum[i].high, apart), from_lane(sum[i].low, apart)};
    return o;
  }
};

// --- terms in float32 -----------------------------------------------------------------------------------

enum { ENTROPY, KL, JS };  // JS of equal weights

// (p+q)/4·[(1+t)·log(1+t) + (1-t)·log(1-t)] with t = |p-q|/(p+q): by its series where t is small and the logarithms cancel
D float js_term(float p, float q, float difference) {
  const float distance = magnitude(difference), both = p + q, t = distance * reciprocal(larger(both, limits<float>::smallest()));
  const float c[] = {EVEN_JS}, u = t * t;
  const float near = distance * t * fmaf(u, polynomial(u, c), 1.0f) * 0.25f;
  // t may round to 1: then hardly anything is left of the smaller.
  const float far = (larger(p, q) * log1pf(t) + smaller(p, q) * logf(larger(1 - t, 1.4901161e-8f))) * 0.5f;
  return t <= 0.7f ? near : far;
}

// --- two rows at once -------------------------------------------------------------------------------------

// Whether the 16-byte loads of both rows fall on the same classes.
template <class T> D bool side_by_side(const Operand &x, const T *a, const Operand &y, const T *b, i64 k) {
  return in_line<T>(x, k) && y.class_stride == 1 && (((u64)a ^ (u64)b) & 15) == 0;
}

// `visit(places, values of a, values of b)`, as `sweep_line` and `sweep_apart` do it for one row.
template <class T, class Visit>
D void sweep_lines(const T *a, const T *b, i64 low, i64 high, const Team &team, Visit &visit) {
  const int N = vector_of<T>::size, PAIRS = IN_FLIGHT / 2, GROUP = AT_ONCE / N < PAIRS ? AT_ONCE / N : PAIRS;
  const int head = before_boundary(a + low, high - low);
  const i64 first = low + head;
  const int vectors = (int)((high - first) / N);
  const uint4 *va = (const uint4 *)(a + first), *vb = (const uint4 *)(b + first);
  for (i64 c = low + team.lane; c < first; c += team.size) {
    float one[1] = {widened(a[c])}, other[1] = {widened(b[c])};
    visit(Places<1>{c, 0}, one, other);
  }
  const int step = PAIRS * team.size, last = vectors - (PAIRS - 1) * team.size;
  int i = team.lane;
  uint4 coming_a[PAIRS], coming_b[PAIRS];
  if (i < last) {
    load_vectors(va + i, team.size, coming_a);
    load_vectors(vb + i, team.size, coming_b);
  }
  while (i < last) {
    uint4 ua[PAIRS], ub[PAIRS];
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) {
      ua[j] = coming_a[j];
      ub[j] = coming_b[j];
    }
    const bool more = i + step < last;
#pragma unroll
    for (int j = 0; j < PAIRS; ++j) {  // each if there is more: a branch around all of them would cost moves
      if (more) coming_a[j] = va[i + step + j * team.size];
      if (more) coming_b[j] = vb[i + step + j * team.size];
    }
#pragma unroll
    for (int j = 0; j < PAIRS; j += GROUP) {
      float p[GROUP * N], q[GROUP * N];
      unpack_vectors(ua, j, a, p);
      unpack_vectors(ub, j, b, q);
      visit(Places<N>{first + ((i64)i + j * team.size) * N, team.size * N}, p, q);
    }
    i += step;
  }
#pragma unroll 1
  for (; i < vectors; i += team.size) {
    float p[N], q[N];
    unpack(va[i], a, p);
    unpack(vb[i], b, q);
    visit(Places<N>{first + (i64)i * N, 0}, p, q);
  }
  for (i64 c = first + (i64)vectors * N + team.lane; c < high; c += team.size) {
    float one[1] = {widened(a[c])}, other[1] = {widened(b[c])};
    visit(Places<1>{c, 0}, one, other);
  }
}

// What lies beyond the last class adds nothing to any sum: `beyond_a` and `beyond_b`.
template <class T, class Visit>
D void sweep_pairs(const Operand &x, const T *a, const Operand &y, const T *b, i64 low, i64 high, i64 k, const Team &team, float beyond_a, float beyond_b, Visit &visit) {
  if (side_by_side(x, a, y, b, k)) {
    sweep_lines(a, b, low, high, team, visit);
    return;
  }
  for (i64 c = low + team.lane; c < high; c += IN_FLIGHT * team.size) {
    const Places<1> places = {c, team.size};
    float p[IN_FLIGHT], q[IN_FLIGHT];
#pragma unroll
    for (int j = 0; j < IN_FLIGHT; ++j) {
      const i64 at = places.at(j);
      p[j] = at < high ? widened(a[at * x.class_stride]) : beyond_a;
      q[j] = at < high ? widened(b[at * y.class_stride]) : beyond_b;
    }
    visit(places, p, q);
  }
}

// Visits for a record that does not keep what is `known` of the row.
template <class Record, class Known> struct Adding {
  Record r;
  const Known &known;

  template <int W, int N> D void operator()(const Places<W> &, const float (&a)[N], const float (&b)[N]) { r.add(a, b, known); }
};

// --- rows of results --------------------------------------------------------------------------------------

// What the loss of a row is stored as where these kernels leave it to the careful ones: all that is not finite.
D float or_left(float loss) { return is_finite(loss) ? loss : limits<float>::nan(); }

// Writes an array of x's shape as it is computed: 16 bytes at a time where it lies like the rows.
template <class T> struct MapWriter {
  T *row;
  i64 stride, high;
  bool vectors;

  template <int W, int N> D void put(const Places<W> &places, float (&v)[N]) const {
    if (W % vector_of<T>::size == 0 && vectors) {
      store_vectors(row, places, v);
      return;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const i64 at = places.at(j);
      if (W > 1 || at < high) narrow(v[j], row[at * stride]);  // a vector does not reach beyond
    }
  }
};

template <class T> D MapWriter<T> writer_of(const Operand &o, i64 row, i64 k, const T *x, bool lines) {
  MapWriter<T> w = {(T *)o.data + row_start(o, row), o.class_stride, k, false};
  w.vectors = lines && o.class_stride == 1 && (((u64)w.row ^ (u64)x) & 15) == 0;
  return w;
}
