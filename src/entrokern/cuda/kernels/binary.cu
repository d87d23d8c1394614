// Binary cross-entropy of logits in float32, in one read: of elements that lie in line with their targets, and of rows.
//
// All comes from e = e^-|x|: softplus(±x) = log1p(e) + max(±x, 0), and the sigmoids of x and -x are 1 and e over 1 + e.

struct Arguments {
  Operand x, t, loss, grad, hess;  // no data: not wanted
  const float *row_factors, *map_scale;
  const float *weights;     // of the elements of a line; null: all are 1
  const float *pos_weight;  // of `period` classes, and once more of the first; null: `pos_high` and `pos_low` for all
  float *counts;            // of rows: 1 where anything counts
  void *partial;            // a BlockSum of each block; null: no sum is wanted
  i64 n, k;
  int team, whole;  // whether targets are integers, which must be 0 or 1
  int period, lows;  // where in `pos_weight` that begins by which each of its numbers is rounded
  float keep, rest, factor, ignored;  // the weights of the classes: pos_weight·(keep·t + rest) and keep·(1-t) + rest
  float pos_high, pos_low;
};

struct BlockSum {
  Twofold loss, weight;
};

struct Element {
  float loss, slope, bend;
};

// keep·(1 - t - weight·t), nearly exact: where prediction and target agree that is all there is of the slope. Neither the
// difference nor the product is rounded before they are subtracted.
D float weights_gap(float t, float keep, const Twofold &weight) {
  const float other = 1 - t, rounded = (1 - other) - t, part = product(t, weight.high);
  return keep * ((other - part) + (rounded - fmaf(t, weight.high, -part) - t * weight.low));
}

// 1/(1 + e) for 0 <= e <= 1, as good as rounded once: the Hessian has its square, and weights bring errors of their own.
D float share_of_one(float e) {
  const float sum = 1 + e, rounded = e - (sum - 1), r = reciprocal(sum);
  return fmaf(r, fmaf(-sum, r, 1.0f) - rounded * r, r);
}

// With `WEIGHTS`, the positive part has one; where there are slopes too, `rest` is 0 or that weight is 1.
template <bool WEIGHTS> D Element binary_element(float x, float t, float keep, float rest, const Twofold &weight) {
  const float log1p_c[] = {LOG1P_F32}, half_tanh_c[] = {HALF_TANH};
  const float positive = fmaf(keep, t, rest), a = WEIGHTS ? fmaf(weight.high, positive, weight.low * positive) : positive;
  const float b = fmaf(keep, 1 - t, rest), both = a + b;
  const float e = exp2_of(-magnitude(x) * 1.44269504f), log1p_e = fmaf(e * e, polynomial(e, log1p_c), e);
  const float r = WEIGHTS ? share_of_one(e) : reciprocal(1 + e);
  const float steep = x < 0 ? a : b;  // the class whose surprise grows with |x|, or does not count at all
  Element v;
  v.loss = both * log1p_e + (steep == 0 ? 0.0f : steep * magnitude(x));
  // Near x = 0 both sigmoids are 1/2, and where the weights are nearly equal too, all that is left of the difference is
  // (b - a)/2 + (a + b)·tanh(x/2)/2.
  const float gap = WEIGHTS ? weights_gap(t, keep, weight) : keep * fmaf(-2, t, 1.0f);
  const float near = 0.5f * gap + both * (0.5f * x * polynomial(x * x, half_tanh_c));
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

// N numbers side by side, of `reach` that there are: 16 bytes at once where they are `in_vectors`. (Single loads without a
// bound, of the very same numbers, would be mingled with those.)
template <int N> D void load_floats(const float *p, i64 reach, bool in_vectors, float *v) {
  if (N % 4 == 0 && in_vectors) {
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      float four[4];
      unpack(*(const uint4 *)(p + j), p, four);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j + i] = four[i];
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = j < reach ? p[j] : 0.0f;
  }
}

// With `WEIGHTS`, elements have some: of their own, of the positive part of their class, or both.
template <class T, class Y, bool WEIGHTS, bool MAPS> struct Visit {
  const Arguments &a;
  const Y *t;
  MapWriter<float> loss;
  MapWriter<T> grad, hess;
  bool in_vectors;  // whether the targets of a vector of x are one too
  bool weights_in_vectors, classes_in_vectors;
  i64 target_stride;
  float factor;
  Twofold sum, weight;  // of losses, and of what counts …
  i64 count;            // … which without weights is a count
  unsigned begun;       // the last element of class 0 before a segment, but for multiples of 2^32
  unsigned inverse;     // of the number of classes, times 2^32

  // What counts, as a number and its rounding
  D Twofold counted() const {
    const float high = (float)count;
    return WEIGHTS ? weight : Twofold{high, (float)(count - (i64)high)};
  }

  D void begin_segment(i64 low) { begun = (unsigned)(low / a.period * a.period); }

  // Of an element of the segment. The quotient is as it should be, or less by 1.
  D unsigned class_of(i64 at) const {
    const unsigned period = (unsigned)a.period, steps = (unsigned)at - begun;
    const unsigned c = steps - (unsigned)((u64)steps * inverse >> 32) * period;
    return c >= period ? c - period : c;
  }

  template <int W, int N> D void operator()(const Places<W> &places, float (&x)[N]) {
    float y[N], own[N], pos[N], pos_low[N];
    if (W == vector_of<T>::size && in_vectors) {
      load_all(places, y);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        // Vectors do not reach beyond either: as in `load_floats`.
        const i64 at = places.at(j);
        y[j] = at < grad.high ? target_of(t[at * target_stride]) : 0.0f;
      }
    }
    if (WEIGHTS) load_weights(places, own, pos, pos_low);
    float values[N], slopes[N], bends[N], total = 0, weighed = 0;
    int counted = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const bool there = W > 1 || places.at(j) < grad.high, counts = there && y[j] != a.ignored && (!WEIGHTS || own[j] != 0);
      if (a.whole && y[j] != 0 && y[j] != 1) y[j] = limits<float>::nan();
      Element v = binary_element<WEIGHTS>(x[j], y[j], a.keep, a.rest, WEIGHTS ? Twofold{pos[j], pos_low[j]} : Twofold{1, 0});
      if (WEIGHTS) v = {own[j] * v.loss, own[j] * v.slope, own[j] * v.bend};
      // What does not count is 0, whatever x holds there.
      values[j] = counts ? v.loss : 0.0f;
      total += values[j];
      counted += counts;
      if (WEIGHTS) weighed += counts ? own[j] : 0.0f;
      if (MAPS) {
        const bool defined = v.loss == v.loss;
        slopes[j] = counts && factor != 0 ? (defined ? v.slope * factor : v.loss) : 0.0f;
        bends[j] = counts && factor != 0 ? (defined ? v.bend * factor : v.loss) : 0.0f;
      }
    }
    sum.add(total);
    if (WEIGHTS) weight.add(weighed);
    count += counted;
    if (loss.row) loss.put(places, values);
    if (MAPS && grad.row) grad.put(places, slopes);
    if (MAPS && hess.row) hess.put(places, bends);
  }

  template <int W, int N> D void load_weights(const Places<W> &places, float (&own)[N], float (&pos)[N], float (&pos_low)[N]) const {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      own[j] = 1;
      pos[j] = a.pos_high;
      pos_low[j] = a.pos_low;
    }
    if (a.weights) {
#pragma unroll
      for (int j = 0; j < N; j += W) {
        const i64 at = places.at(j);
        load_floats<W>(a.weights + at, grad.high - at, weights_in_vectors, own + j);
      }
    }
    if (a.pos_weight) {
#pragma unroll
      for (int j = 0; j < N; j += W) {
        const int c = (int)class_of(places.at(j)), reach = a.lows - c;
        load_floats<W>(a.pos_weight + c, reach, classes_in_vectors, pos + j);
        if (MAPS) load_floats<W>(a.pos_weight + a.lows + c, reach, classes_in_vectors, pos_low + j);
      }
    }
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

template <class T, class Y, bool WEIGHTS, bool MAPS> D Visit<T, Y, WEIGHTS, MAPS> visit_of(const Arguments &a, i64 row, const T *x) {
  const Y *t = (const Y *)a.t.data + row_start(a.t, row);
  const bool lines = in_line<T>(a.x, a.k);
  // The first vector of x begins so many classes on: what belongs to it must begin a vector there too.
  const int head = before_boundary(x, a.k);
  const u64 at = (u64)(t + head);
  const bool vectors = lines && a.t.class_stride == 1 && at % (vector_of<T>::size * sizeof(Y) > 4 && sizeof(Y) > 1 ? 16 : 4) == 0;
  const MapWriter<float> none = {nullptr, 1, a.k, false};
  Visit<T, Y, WEIGHTS, MAPS> v = {a, t, none, map_writer(a.grad, row, a.k, x), map_writer(a.hess, row, a.k, x), vectors};
  v.weights_in_vectors = ((u64)(a.weights + head) & 15) == 0;
  v.classes_in_vectors = a.period % 4 == 0 && head % 4 == 0;
  v.target_stride = a.t.class_stride;
  v.factor = a.factor;
  v.sum = v.weight = {0, 0};
  v.count = v.begun = 0;
  v.inverse = WEIGHTS ? 0xffffffffu / (unsigned)a.period : 0;
  if (!lines) v.grad.vectors = v.hess.vectors = false;
  if (a.map_scale) v.factor *= *a.map_scale;
  return v;
}

// One line of elements, cut into segments; each has a loss of its own.
template <class T, class Y, bool WEIGHTS, bool MAPS> D void binary_elements(const Arguments &a) {
  const Team team = {BLOCK, (int)threadIdx.x};
  const T *x = (const T *)a.x.data;
  Visit<T, Y, WEIGHTS, MAPS> visit = visit_of<T, Y, WEIGHTS, MAPS>(a, 0, x);
  float *loss = (float *)a.loss.data;
  visit.loss.row = loss;
  visit.loss.vectors = in_line<T>(a.x, a.k) && ((u64)(loss + before_boundary(x, a.k)) & 15) == 0;
  // Segments begin where vectors do, however the line lies.
  const i64 head = before_boundary(x, a.k), segments = (a.k - head + SEGMENT - 1) / SEGMENT;
  if (head > 0 && blockIdx.x == 0) sweep(a.x, x, 0, head, a.k, team, visit);
  for (i64 s = blockIdx.x; s < segments; s += gridDim.x) {
    const i64 low = head + s * SEGMENT;
    if (WEIGHTS) visit.begin_segment(low);
    sweep(a.x, x, low, segment_end(low, a.k), a.k, team, visit);
  }
  if (!a.partial) return;
  TwofoldSums<2> sums = {{visit.sum, visit.counted()}};
  sums = joined_by(team, sums);
  if (threadIdx.x == 0) ((BlockSum *)a.partial)[blockIdx.x] = {sums.sum[0], sums.sum[1]};
}

// Rows, each summed up to one loss.
template <class T, class Y, bool WEIGHTS, bool MAPS> D void binary_rows(const Arguments &a) {
  for (const auto [team, row, real] : Rows(a.n, a.team)) {
    const T *x = (const T *)a.x.data + row_start(a.x, row);
    Visit<T, Y, WEIGHTS, MAPS> visit = visit_of<T, Y, WEIGHTS, MAPS>(a, row, x);
    if (a.row_factors) visit.factor *= a.row_factors[row];
    if (real) sweep(a.x, x, 0, a.k, a.k, team, visit);
    TwofoldSums<WEIGHTS ? 2 : 1> sums;
    sums.sum[0] = visit.sum;
    if (WEIGHTS) sums.sum[1] = visit.weight;
    sums = joined_by(team, sums);
    if (!real) continue;
    const float loss = sums.sum[0].value();
    if (team.lane == 0) ((float *)a.loss.data)[row] = loss;
    if (WEIGHTS && a.counts && team.lane == 0) a.counts[row] = sums.sum[1].high != 0;
    if (MAPS && loss != loss && visit.factor != 0) {  // a NaN anywhere in a row makes all of it NaN
      for (i64 c = team.lane; c < a.k; c += team.size) {
        if (visit.grad.row) narrow(loss, visit.grad.row[c * visit.grad.stride]);
        if (visit.hess.row) narrow(loss, visit.hess.row[c * visit.hess.stride]);
      }
    }
  }
}
