// The careful kernels of what has no softmax: binary cross-entropy, information and estimates of KL, in float64.
//
// An item is a stretch of CHUNK elements of a row. Sums go from threads to blocks, in an order that depends on the
// shape alone, and from there to `totals.cu`.

enum { LOGITS, LOG_PROBS, PROBS };
enum { BINARY, INFORMATION, ESTIMATE };
enum { CHUNK = 4096 };

struct Arguments {
  Operand x, t, pos_weight, sample_weight, loss, grad, hess;  // no data: not there, or not wanted
  const double *row_factors, *map_scale;                       // of rows that are summed
  double *partial;                                             // two sums of each block: of losses, and of weights
  float *counts;                                               // of rows that are summed: 1 where anything counts
  float *split;                                                // of `split_pos_weight`
  i64 n, k;
  int team, parts, quantity, form, summed, has_ignored, estimator;
  double unit, factor, smoothing, ignored;
};

// --- formulas of an element -----------------------------------------------------------------------------

struct Element {
  double loss, slope, bend;  // and its first and second derivative by x
};

// a·(-log p) + b·(-log(1-p)), with the weights a and b of the two classes
D Element binary_element(double x, double a, double b, int form) {
  Element e = {0, 0, 0};
  if (form == LOGITS) {
    const double u = exp(-fabs(x)), tail = log1p(u);
    const double s = (x >= 0 ? 1 : u) / (1 + u), c = (x >= 0 ? u : 1) / (1 + u);  // σ(x), and 1 - σ(x) with its digits
    e.loss = times(a, fmax(-x, 0.0) + tail) + times(b, fmax(x, 0.0) + tail);
    e.slope = b * s - a * c;
    e.bend = (a + b) * s * c;
    if (x != x) e.loss = e.slope = e.bend = x;
  } else if (form == LOG_PROBS) {
    const double other = x > -0.6931471805599453 ? log(-expm1(x)) : log1p(-exp(x));  // log(1 - p)
    e.loss = times(a, -x) + times(b, -other);
    e.slope = times(b, 1 / expm1(-x)) - a;
  } else {
    e.loss = times(a, -log(x)) + times(b, -log1p(-x));
    e.slope = times(b, 1 / (1 - x)) - times(a, 1 / x);
    if (x < 0) e.loss = e.slope = limits<double>::nan();
  }
  return e;
}

// An estimator of KL from one sample, with d = log p - log q
D double estimate(double d, int estimator) {
  if (estimator == 1) return d;
  if (estimator == 2) return 0.5 * d * d;
  return fabs(d) < 1 ? d * d * expm1_tail(d) : d == limits<double>::inf() ? d : expm1(-d) + d;
}

// --- the kernel -------------------------------------------------------------------------------------------

struct Starts {
  i64 x, t, pos_weight, sample_weight, loss, grad, hess;
};

D Starts starts_of(const Arguments &a, i64 row) {
  return {start_of(a.x, row), start_of(a.t, row), start_of(a.pos_weight, row), a.summed ? 0 : start_of(a.sample_weight, row),
          a.summed ? 0 : start_of(a.loss, row), start_of(a.grad, row), start_of(a.hess, row)};
}

D double at(const Operand &o, i64 start, i64 c) { return load_number(o, start + c * o.class_stride); }

// One element: its loss and weight into the sums, its results into their arrays. `scale` multiplies the maps.
D void visit(const Arguments &a, const Starts &p, i64 c, double scale, Sums<2> &sums) {
  const double x = at(a.x, p.x, c);
  double value, weight = 1, slope = 0, bend = 0;
  bool counts = true;
  if (a.quantity == INFORMATION) {
    value = x == 1 ? 0.0 : -log(x) * a.unit;
  } else if (a.quantity == ESTIMATE) {
    value = estimate(x - at(a.t, p.t, c), a.estimator);
  } else {
    double t = at(a.t, p.t, c);
    counts = !(a.has_ignored && t == a.ignored);
    if (is_integer(a.t.dtype) && counts && t != 0 && t != 1) t = limits<double>::nan();
    if (!a.summed && a.sample_weight.data) weight = at(a.sample_weight, p.sample_weight, c);
    const double w = a.pos_weight.data ? at(a.pos_weight, p.pos_weight, c) : 1.0, eps = a.smoothing;
    // The negative part is smoothed on its own: 1 - t would lose the digits of a small ε.
    const Element e = binary_element(x, w * ((1 - eps) * t + 0.5 * eps), (1 - eps) * (1 - t) + 0.5 * eps, a.form);
    counts = counts && weight != 0;
    value = e.loss * a.unit;
    slope = value != value ? value : e.slope * a.unit;
    bend = value != value ? value : e.bend * a.unit;
  }
  // What does not count is 0, whatever x holds there.
  value = counts ? weight * value : 0.0;
  sums.add(0, value);
  sums.add(1, counts ? weight : 0.0);
  if (!a.summed && a.loss.data) store_number(a.loss, p.loss + c * a.loss.class_stride, value);
  if (a.grad.data) store_number(a.grad, p.grad + c * a.grad.class_stride, counts && scale != 0 ? weight * scale * slope : 0.0);
  if (a.hess.data) store_number(a.hess, p.hess + c * a.hess.class_stride, counts && scale != 0 ? weight * scale * bend : 0.0);
}

// Elements, each with a result of its own. The sums of a block's items are its own two numbers in `partial`.
D void each_element(const Arguments &a) {
  const double scale = a.factor * (a.map_scale ? *a.map_scale : 1.0);
  Sums<2> sums;
  sums.begin();
  for (const auto [team, item, real] : Rows(a.n * a.parts, a.team)) {
    if (!real) continue;
    const i64 row = a.parts > 1 ? item / a.parts : item, low = (item - row * a.parts) * CHUNK;
    const i64 high = low + CHUNK < a.k ? low + CHUNK : a.k;
    const Starts p = starts_of(a, row);
    for (i64 c = low + team.lane; c < high; c += team.size) visit(a, p, c, scale, sums);
  }
  if (!a.partial) return;
  const Team block = {BLOCK, (int)threadIdx.x};
  sums = joined_by(block, sums);
  if (threadIdx.x == 0) {
    a.partial[2 * blockIdx.x] = sums.value(0);
    a.partial[2 * blockIdx.x + 1] = sums.value(1);
  }
}

// Rows of binary cross-entropies, each summed up.
D void summed_rows(const Arguments &a) {
  for (const auto [team, row, real] : Rows(a.n, a.team)) {
    const Starts p = starts_of(a, row);
    const double scale = a.factor * (a.map_scale ? *a.map_scale : 1.0) * (a.row_factors ? a.row_factors[row] : 1.0);
    Sums<2> sums;
    sums.begin();
    for (i64 c = team.lane; real && c < a.k; c += team.size) visit(a, p, c, scale, sums);
    sums = joined_by(team, sums);
    if (!real) continue;
    const double loss = sums.value(0);
    const bool counts = sums.value(1) != 0;
    if (team.lane == 0) {
      store_number(a.loss, row, counts ? loss : 0.0);
      if (a.counts) a.counts[row] = counts;
    }
    if (loss != loss && scale != 0) {  // a NaN anywhere in a row makes all of it NaN
      fill(a.grad, p.grad, a.k, team, loss);
      fill(a.hess, p.hess, a.k, team, loss);
    }
  }
}

// The weights of `k` classes for the fast kernels: `n` numbers, which begin anew after the last class, as float32; and
// behind them what that has rounded away.
D void split_pos_weight(const Arguments &a) {
  for (i64 i = (i64)blockIdx.x * BLOCK + threadIdx.x; i < a.n; i += (i64)gridDim.x * BLOCK) {
    const double w = at(a.pos_weight, 0, (int)i % (int)a.k);
    const float high = (float)w;
    a.split[i] = high;
    a.split[a.n + i] = is_finite(high) ? (float)(w - high) : 0.0f;
  }
}
