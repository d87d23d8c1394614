// Binary cross-entropy of logits in float32, in one read: of elements that lie in line with their targets, and of rows.
//
// All comes from e = e^-|x|: softplus(±x) = log1p(e) + max(±x, 0), and the sigmoids of x and -x are 1 and e over 1 + e.

struct Arguments {
  Operand x, t, loss, grad, hess;  // no data: not wanted
  const float *row_factors, *map_scale;
  void *partial;  // a BlockSum of each block; null: no sum is wanted
  i64 n, k;
  int team, whole;  // whether targets are integers, which must be 0 or 1
  float keep, rest, factor, ignored;  // the weights of the classes: keep·t + rest and keep·(1-t) + rest
};

struct BlockSum {
  float high, low;
  i64 count;
};

struct Element {
  float loss, slope, bend;
};

D Element binary_element(float x, float t, float keep, float rest) {
  const float log1p_c[] = {LOG1P_F32}, half_tanh_c[] = {HALF_TANH};
  const float a = fmaf(keep, t, rest), b = fmaf(keep, 1 - t, rest), both = a + b;
  const float e = exp2_of(-magnitude(x) * 1.44269504f), r = reciprocal(1 + e), log1p_e = fmaf(e * e, polynomial(e, log1p_c), e);
  const float steep = x < 0 ? a : b;  // the class whose surprise grows with |x|, or does not count at all
  Element v;
  v.loss = both * log1p_e + (steep == 0 ? 0.0f : steep * magnitude(x));
  // Near x = 0 both sigmoids are 1/2, and where the weights are nearly equal too, all that is left of the difference is
  // (b - a)/2 + (a + b)·tanh(x/2)/2.
  const float near = 0.5f * (keep * fmaf(-2, t, 1.0f)) + both * (0.5f * x * polynomial(x * x, half_tanh_c));
  v.slope = magnitude(x) < 1 ? near : b * ((x < 0 ? e : 1.0f) * r) - a * ((x < 0 ? 1.0f : e) * r);
  v.bend = both * (e * r) * r;
  return v;
}

// Targets beside 16 bytes of numbers: of the same type in one load, of one byte each in one of 4 or 8.
template <class T> D void load_targets(const T *t, float (&v)[vector_of<T>::size], const T *) { unpack(*(const uint4 *)t, t, v); }
template <class T> D void load_targets(const unsigned char *t, float (&v)[vector_of<T>::size], const T *) {
  const int N = vector_of<T>::size;
  unsigned words[2];
  words[0] = ((const unsigned *)t)[0];
  if (N > 4) words[1] = ((const unsigned *)t)[1];
#pragma unroll
  for (int j = 0; j < N; ++j) v[j] = (float)(words[j / 4] >> 8 * (j % 4) & 255);
}
D float target_of(unsigned char t) { return t; }
template <class T> D float target_of(T t) { return widened(t); }

template <class T, class Y, bool MAPS> struct Visit {
  const Arguments &a;
  const Y *t;
  MapWriter<float> loss;
  MapWriter<T> grad, hess;
  bool in_vectors;  // whether the targets of a vector of x are one too
  i64 target_stride;
  float factor;
  Twofold sum;
  i64 count;

  template <int W, int N> D void operator()(const Places<W> &places, float (&x)[N]) {
    float y[N];
    if (W == vector_of<T>::size && in_vectors) {
      load_all(places, y);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        // Vectors do not reach beyond either; but unchecked, these loads would be mingled with those of 16 bytes.
        const i64 at = places.at(j);
        y[j] = at < grad.high ? target_of(t[at * target_stride]) : 0.0f;
      }
    }
    float values[N], slopes[N], bends[N], total = 0;
    int counted = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const bool there = W > 1 || places.at(j) < grad.high, counts = there && y[j] != a.ignored;
      if (a.whole && y[j] != 0 && y[j] != 1) y[j] = limits<float>::nan();
      const Element v = binary_element(x[j], y[j], a.keep, a.rest);
      // What does not count is 0, whatever x holds there.
      values[j] = counts ? v.loss : 0.0f;
      total += values[j];
      counted += counts;
      if (MAPS) {
        const bool defined = v.loss == v.loss;
        slopes[j] = counts && factor != 0 ? (defined ? v.slope * factor : v.loss) : 0.0f;
        bends[j] = counts && factor != 0 ? (defined ? v.bend * factor : v.loss) : 0.0f;
      }
    }
    sum.add(total);
    count += counted;
    if (loss.row) loss.put(places, values);
    if (MAPS && grad.row) grad.put(places, slopes);
    if (MAPS && hess.row) hess.put(places, bends);
  }

  template <int W, int N> D void load_all(const Places<W> &places, float (&y)[N]) const {
    const int width = vector_of<T>::size;
#pragma unroll
    for (int j = 0; j + width <= N; j += width) {
      float one[width];
      load_targets(t + places.at(j), one, (const T *)nullptr);
#pragma unroll
      for (int i = 0; i < width; ++i) y[j + i] = one[i];
    }
  }
};

template <class T> D MapWriter<T> map_writer(const Operand &o, i64 row, i64 k, const T *x) {
  if (!o.data) return {nullptr, 1, k, false};
  return writer_of(o, row, k, x, true);
}

template <class T, class Y, bool MAPS> D Visit<T, Y, MAPS> visit_of(const Arguments &a, i64 row, const T *x) {
  const Y *t = (const Y *)a.t.data + row_start(a.t, row);
  const bool lines = in_line<T>(a.x, a.k);
  // The first vector of x begins so many classes on: the targets there must begin one too.
  const u64 at = (u64)(t + before_boundary(x, a.k));
  const bool vectors = lines && a.t.class_stride == 1 && at % (vector_of<T>::size * sizeof(Y) > 4 && sizeof(Y) > 1 ? 16 : 4) == 0;
  const MapWriter<float> none = {nullptr, 1, a.k, false};
  Visit<T, Y, MAPS> v = {a, t, none, map_writer(a.grad, row, a.k, x), map_writer(a.hess, row, a.k, x), vectors, a.t.class_stride, a.factor, {0, 0}, 0};
  if (!lines) v.grad.vectors = v.hess.vectors = false;
  if (a.map_scale) v.factor *= *a.map_scale;
  return v;
}

struct Counted {
  TwofoldSums<1> sums;
  i64 count;

  D void join(const Counted &other) {
    sums.join(other.sums);
    count += other.count;
  }
  D Counted shuffled(int apart) const { return {sums.shuffled(apart), from_lane(count, apart)}; }
};

// One line of elements, cut into segments; each has a loss of its own.
template <class T, class Y, bool MAPS> D void binary_elements(const Arguments &a) {
  const Team team = {BLOCK, (int)threadIdx.x};
  const T *x = (const T *)a.x.data;
  Visit<T, Y, MAPS> visit = visit_of<T, Y, MAPS>(a, 0, x);
  float *loss = (float *)a.loss.data;
  visit.loss.row = loss;
  visit.loss.vectors = in_line<T>(a.x, a.k) && ((u64)(loss + before_boundary(x, a.k)) & 15) == 0;
  // Segments begin where vectors do, however the line lies.
  const i64 head = before_boundary(x, a.k), segments = (a.k - head + SEGMENT - 1) / SEGMENT;
  if (head > 0 && blockIdx.x == 0) sweep(a.x, x, 0, head, a.k, team, visit);
  for (i64 s = blockIdx.x; s < segments; s += gridDim.x) {
    const i64 low = head + s * SEGMENT;
    sweep(a.x, x, low, segment_end(low, a.k), a.k, team, visit);
  }
  if (!a.partial) return;
  Counted counted;
  counted.sums.sum[0] = visit.sum;
  counted.count = visit.count;
  counted = joined_by(team, counted);
  if (threadIdx.x == 0) ((BlockSum *)a.partial)[blockIdx.x] = {counted.sums.sum[0].high, counted.sums.sum[0].low, counted.count};
}

// Rows, each summed up to one loss.
template <class T, class Y, bool MAPS> D void binary_rows(const Arguments &a) {
  for (const auto [team, row, real] : Rows(a.n, a.team)) {
    const T *x = (const T *)a.x.data + row_start(a.x, row);
    Visit<T, Y, MAPS> visit = visit_of<T, Y, MAPS>(a, row, x);
    if (a.row_factors) visit.factor *= a.row_factors[row];
    if (real) sweep(a.x, x, 0, a.k, a.k, team, visit);
    TwofoldSums<1> sums;
    sums.sum[0] = visit.sum;
    sums = joined_by(team, sums);
    if (!real) continue;
    const float loss = sums.sum[0].value();
    if (team.lane == 0) ((float *)a.loss.data)[row] = loss;
    if (MAPS && loss != loss && visit.factor != 0) {  // a NaN anywhere in a row makes all of it NaN
      for (i64 c = team.lane; c < a.k; c += team.size) {
        if (visit.grad.row) narrow(loss, visit.grad.row[c * visit.grad.stride]);
        if (visit.hess.row) narrow(loss, visit.hess.row[c * visit.hess.stride]);
      }
    }
  }
}
