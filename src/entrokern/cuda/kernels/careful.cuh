// For the careful kernels: numbers of any dtype as float64, sums that lose nothing, and the formulas of divergences.
//
// The formulas are those of `_formulas.py`, with their reasons there. Names: p, q probabilities, m a row's largest
// logit, S = Σ e^(z-m) over the others, Z = 1 + S, L = log Z.

D double load_number(const Operand &o, i64 at) {
  switch (o.dtype) {
    case FLOAT32: return ((const float *)o.data)[at];
    case FLOAT64: return ((const double *)o.data)[at];
    case FLOAT16: return widened(((const float16 *)o.data)[at]);
    case BFLOAT16: return widened(((const bfloat16 *)o.data)[at]);
    case UINT64: return (double)((const u64 *)o.data)[at];
    default: return (double)load_integer(o, at);
  }
}

D void store_number(const Operand &o, i64 at, double v) {
  switch (o.dtype) {
    case FLOAT64: ((double *)o.data)[at] = v; break;
    case FLOAT16: narrow((float)v, ((float16 *)o.data)[at]); break;
    case BFLOAT16: narrow((float)v, ((bfloat16 *)o.data)[at]); break;
    default: ((float *)o.data)[at] = (float)v;
  }
}

// Of an array that may not be there: where a row of it begins, and that row with one number all along it.
D i64 start_of(const Operand &o, i64 row) { return o.data ? row_start(o, row) : 0; }
D void fill(const Operand &o, i64 start, i64 k, const Team &team, double value) {
  if (!o.data) return;
  for (i64 c = team.lane; c < k; c += team.size) store_number(o, start + c * o.class_stride, value);
}

D bool is_integer(int dtype) { return dtype >= INT8; }

// Sums, each with what its additions have rounded away.
template <int N> struct Sums {
  double total[N], lost[N];

  D void begin() {
#pragma unroll
    for (int i = 0; i < N; ++i) total[i] = lost[i] = 0;
  }

  D void add(int i, double v) {
    const double sum = total[i] + v;
    if (is_finite(sum)) lost[i] += fabs(total[i]) >= fabs(v) ? (total[i] - sum) + v : (v - sum) + total[i];
    total[i] = sum;
  }

  D void join(const Sums &other) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      add(i, other.total[i]);
      lost[i] += other.lost[i];
    }
  }

  D Sums shuffled(int apart) const {
    Sums o;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      o.total[i] = from_lane(total[i], apart);
      o.lost[i] = from_lane(lost[i], apart);
    }
    return o;
  }

  D double value(int i) const { return total[i] + lost[i]; }
};

// weight·value, where a weight of 0 gives 0, also times infinity; NaN stays NaN
D double times(double weight, double value) { return weight == 0 && value == value ? 0.0 : weight * value; }

// (atanh(s) - s)/s³ as a polynomial in u = s², for |s| <= 1/3
D double atanh_tail(double u) {
  const double a[10] = {ATANH_TAIL};
  double r = a[9];
#pragma unroll
  for (int i = 8; i >= 0; --i) r = a[i] + u * r;
  return r;
}

// (e^-d - 1 + d)/d² for |d| <= 1
D double expm1_tail(double d) {
  const double a[14] = {EXPM1_TAIL};
  double r = a[13];
#pragma unroll
  for (int i = 12; i >= 0; --i) r = a[i] + d * r;
  return r;
}

D bool close(double a, double b) { return a < 2 * b && b < 2 * a; }

// log(a/b): from a - b where the two are close
D double log_ratio(double a, double b, double difference) {
  if (close(a, b)) {
    const double s = difference / (a + b);
    return 2 * s * (1 + s * s * atanh_tail(s * s));
  }
  const double ratio = a / b;  // may overflow where the difference of logarithms does not
  return ratio > 0 && is_finite(ratio) ? log(ratio) : log(a) - log(b);
}

// a·log(a/b) - a + b, non-negative, from a - b and log(a/b)
D double divergence_term(double a, double b, double difference, double ratio) {
  if (close(a, b)) {
    const double s = difference / (a + b);
    return difference * s * (1 + s * (1 + s) * atanh_tail(s * s));
  }
  return a == 0 ? -difference : a * ratio - difference;
}
