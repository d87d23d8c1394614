// Rows of logits, with labels or without a target: one read gives every number of a row, a second the arrays of x's shape.

// options: SCALE = log2(e)/T, FACTOR = unit·map_scale/T, Z_SLOPE = 2·z_loss/unit; SOFT = ε/k and OWN = 1 - ε + ε/k, the
// weights of a class and of the label's, and what float32 has rounded away of them
enum { INV_T, SCALE, UNIT, SMOOTHING, Z_LOSS, CAP, FACTOR, INV_CAP, Z_SLOPE, SOFT, OWN, SOFT_LOW, OWN_LOW };
enum { NO_MAPS, GRADIENTS, DISTRIBUTIONS };  // what a kernel can write beside row results
enum { ENTROPY_GRADIENT, SOFTMAX, LOG_SOFTMAX };  // the distributions

struct Arguments {
  Operand x, labels, map, hess;
  const void *class_weight, *row_factors, *map_scale;  // of the compute type; null: none
  void *loss, *lse, *log_prob, *entropy, *max_prob, *max, *log_Z;  // of the compute type; null: not wanted
  i64 *argmax, *rank;
  void *records;  // of segments
  i64 n, k, ignore_index;
  int team, mode, parts, has_labels, has_ignored, map_kind;
  double options64[13];
  float options32[13];
};

D float option(const Arguments &a, int i, float) { return a.options32[i]; }
D double option(const Arguments &a, int i, double) { return a.options64[i]; }

// What a row's label says.
template <class C> struct Label {
  i64 at;
  bool given, ignored, bad;
  C logit, weight;
};

template <class T, class C> D Label<C> label_of(const Arguments &a, const T *x, i64 row) {
  Label<C> y = {-1, a.has_labels != 0, false, false, limits<C>::inf(), 1};
  if (y.given) {
    y.at = load_integer(a.labels, row_start(a.labels, row));
    y.ignored = a.has_ignored && y.at == a.ignore_index;
    y.bad = !y.ignored && (y.at < 0 || y.at >= a.k);
    if (y.ignored || y.bad) y.at = -1;
    if (y.at >= 0) {
      y.logit = widened(x[y.at * a.x.class_stride]);
      if (a.class_weight) y.weight = ((const C *)a.class_weight)[y.at];
    }
  }
  return y;
}

// (1-ε)·w_y·(lse - z_y) + (ε/k)·Σ w·(lse - z), where lse - z = L + (top - z) is never a difference of large numbers.
template <class C> D C label_loss(const Arguments &a, const Record<C> &r, C L, C gap, C weight) {
  const C eps = option(a, SMOOTHING, C()), k = (C)a.k;
  C loss = L * 0;  // of a row that is undefined: NaN
  if (eps < 1) loss += weight == 0 ? (C)0 : weight * (L + gap) * (1 - eps);
  if (eps > 0) loss += (L * (r.weights / k) + r.gaps * (option(a, INV_T, C()) / k)) * eps;
  return loss;
}

template <class C> D void put(void *results, i64 row, C value) {
  if (results) ((C *)results)[row] = value;
}

template <int LEVEL, class C> D void finish(const Arguments &a, i64 row, const Record<C> &r, const Label<C> &y, const Scaling<C> &scaling) {
  const bool has_nan = r.S != r.S, empty = r.n == 0;
  const C inv_T = option(a, INV_T, C()), unit = option(a, UNIT, C()), inf = limits<C>::inf(), nan = limits<C>::nan();
  const C S = r.S + (r.n - 1), Z = r.S + r.n;
  const C top = has_nan ? nan : empty ? -inf : r.top;
  const C L = has_nan || empty ? nan : log1p_of(S);
  const C lse = empty ? top : top * inv_T + L;
  const bool finite = is_finite(top);
  put(a.lse, row, lse);
  put(a.max_prob, row, finite ? 1 / Z : nan);
  put(a.max, row, top);
  put(a.log_Z, row, finite ? L : nan);
  const C ln2 = (C)0.6931471805599453;
  const C entropy = (LEVEL & FULL) && finite ? (L - r.spread / Z * ln2) * unit : nan;
  if (LEVEL & FULL) {
    put(a.entropy, row, entropy);
    if (a.argmax) a.argmax[row] = has_nan ? -1 : r.at;
    if (a.rank) a.rank[row] = has_nan || y.at < 0 ? -1 : r.above;
  }
  if (y.given) {
    const C gap = (top - ((LEVEL & OPTIONS) ? scaling.shown(y.logit) : y.logit)) * inv_T;
    C loss = ((LEVEL & OPTIONS) ? label_loss(a, r, L, gap, y.weight) : y.weight == 0 ? L * 0 : y.weight * (L + gap)) * unit;
    if (option(a, Z_LOSS, C()) != 0) loss += option(a, Z_LOSS, C()) * lse * lse;
    put(a.loss, row, y.ignored ? (C)0 : y.bad ? nan : loss);
    put(a.log_prob, row, y.at < 0 ? nan : -(L + gap));
  } else {
    put(a.loss, row, entropy);
  }
}

// --- arrays of x's shape ----------------------------------------------------------------------------

template <class C> struct RowMap {
  i64 label;
  C m, L, mean, inv_Z, rest;  // m: what is shown of the largest logit; rest: 1 - p of that
  C scale, inv_T;
  C factor, slope;  // of the gradient; of the Hessian
  C fill;           // what the row is filled with
  bool filled;
  // With options, (pull·e^z - b·Z)·factor: with e^z as the record keeps it, most of that is known of the row.
  Scaling<C> scaling;
  C A, more, pull, n, S;
  C counted, others, own;  // beside pull·x, of classes that are counted and of others; what is written for the label
  bool weighs;             // b is another one for each class
};

// What pull·e^z - b·Z has beside pull·x, for a class whose e^z is counted or is not. A - b·n can be next to nothing: it is
// rounded once, and then only what is as small is added.
template <class C> D C beside_x(const RowMap<C> &p, C b, C b_low, bool counted) {
  const C less = b_low * p.n + b * p.S;
  return counted ? (fused(-b, p.n, p.A) - less) + p.more : -(b * p.n + less);
}

// Gradients with options: b is ε/k·w, and (1-ε)·w_y + ε/k·w_y of the label; A = Σ b. What z_loss·lse² adds,
// 2·z_loss·lse·p, is more of A where that is times p.
template <class C> D void set_pulls(const Arguments &a, const Record<C> &r, const Label<C> &y, RowMap<C> &p) {
  const C soft = option(a, SOFT, C()), soft_low = option(a, SOFT_LOW, C()), z_slope = option(a, Z_SLOPE, C());
  const C own = option(a, OWN, C()) * y.weight, own_low = option(a, OWN_LOW, C()) * y.weight;
  p.n = r.n;
  p.S = r.S;
  p.weighs = sizeof(C) == 8 && a.class_weight && soft > 0;
  p.A = p.weighs ? own + soft * (r.weights - y.weight) : y.weight;
  p.more = z_slope == 0 ? z_slope : z_slope * (r.top * p.inv_T + log1p_of(r.S + (r.n - 1)));
  p.pull = p.A + p.more;
  p.slope *= p.A * p.inv_Z;
  p.counted = beside_x(p, soft, soft_low, true);
  p.others = beside_x(p, soft, soft_low, false);
  const C z = p.scaling.shown(y.logit);
  bool counted;
  const C x = excess_or_exp((z - p.m) * p.scale, counted);
  p.own = (p.pull * x + beside_x(p, own, own_low, counted)) * p.factor * p.scaling.slope(y.logit, z);
}

template <int LEVEL, int MAPS, class C>
D RowMap<C> map_of(const Arguments &a, i64 row, const Record<C> &r, const Label<C> &y, const Scaling<C> &scaling) {
  RowMap<C> p;
  const C Z = r.S + r.n, S = r.S + (r.n - 1);
  const bool logarithm = MAPS == DISTRIBUTIONS && a.map_kind == LOG_SOFTMAX;
  const bool weighed = MAPS == GRADIENTS || a.map_kind == ENTROPY_GRADIENT;
  p.label = y.at;
  p.m = (LEVEL & OPTIONS) ? r.top : r.m;
  p.inv_Z = 1 / Z;
  p.rest = S / Z;
  p.L = logarithm ? log1p_of(S) : (C)0;
  p.mean = MAPS == DISTRIBUTIONS ? r.spread / Z : (C)0;
  p.scale = option(a, SCALE, C());
  p.inv_T = option(a, INV_T, C());
  C f = option(a, FACTOR, C());
  if (a.map_scale) f *= *(const C *)a.map_scale;
  if (a.row_factors) f *= ((const C *)a.row_factors)[row];
  p.factor = f * ((LEVEL & OPTIONS) ? p.inv_Z : y.weight);
  p.slope = p.factor * p.inv_T;
  p.scaling = scaling;
  if (LEVEL & OPTIONS) set_pulls(a, r, y, p);
  const bool left_out = weighed && (f == 0 || y.ignored);
  // The logarithm is still of use where the largest logit is +inf.
  const bool undefined = Z != Z || r.n == 0 || (!logarithm && !is_finite(r.m)) || (weighed && y.bad);
  p.filled = left_out || undefined;
  p.fill = left_out ? (C)0 : limits<C>::nan();
  return p;
}

// The true class gives -(Σ of the others' p), and never p - 1.
template <class C> D C gradient_value(const RowMap<C> &p, C v, bool of_label) {
  const C e = exp2_of((v - p.m) * p.scale) * p.inv_Z;
  return (of_label ? -(v == p.m ? p.rest : 1 - e) : e) * p.factor;
}

// The same with options; `soft` is b of a class where classes weigh differently.
template <class C> D C optional_gradient_value(const RowMap<C> &p, C v, bool of_label, C soft) {
  const C z = p.scaling.shown(v);
  bool counted;
  const C x = excess_or_exp((z - p.m) * p.scale, counted);
  const C beside = p.weighs ? beside_x(p, soft, (C)0, counted) : counted ? p.counted : p.others;
  return of_label ? p.own : (p.pull * x + beside) * p.factor * p.scaling.slope(v, z);
}

template <class C> D C hessian_value(const RowMap<C> &p, C v) {
  const C e = exp2_of((v - p.m) * p.scale) * p.inv_Z;
  return e * (v == p.m ? p.rest : 1 - e) * p.slope;
}

template <class C> D C optional_hessian_value(const RowMap<C> &p, C v) {
  bool counted;
  const C x = excess_or_exp((v - p.m) * p.scale, counted);
  return (counted ? 1 + x : x) * ((counted ? p.n - 1 : p.n) + (p.S - x)) * p.slope;
}

template <class C> D C distribution_value(const RowMap<C> &p, int kind, C v) {
  const C d = v - p.m, t = d * p.scale;
  if (kind == LOG_SOFTMAX) return p.m == limits<C>::inf() ? d : d * p.inv_T - p.L;
  const C e = exp2_of(t) * p.inv_Z;
  if (kind == SOFTMAX) return e;
  const C ln2 = (C)0.6931471805599453;
  return e == 0 ? e : -e * ((larger(t, limits<C>::floor()) - p.mean) * ln2) * p.factor;
}

// Maps of 16-bit numbers may be asked for as float32.
template <class T> D bool is_wide(const Operand &o) { return sizeof(T) == 2 && o.dtype == FLOAT32; }

template <class T, class C> D void store_one(const Operand &o, i64 at, C v, const T *) {
  if (is_wide<T>(o)) {
    ((float *)o.data)[at] = (float)v;
  } else {
    narrow(v, ((T *)o.data)[at]);
  }
}

// Writes the maps of what it visits. Each thread reads what it writes, so an output may be the row itself.
template <class T, int LEVEL, int MAPS, class C> struct Write {
  const Arguments &a;
  const RowMap<C> &p;
  i64 map_start, hess_start, high;
  bool vectors;  // whether the outputs lie like the row, for stores of 16 bytes

  template <int W, int N> D void operator()(const Places<W> &places, C (&v)[N]) const {
    if (a.map.data) {
      C out[N];
      const int label = places.find(p.label);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const C value = value_of(v[j], places.at(j), places.offset(j) == label);
        out[j] = p.filled ? p.fill : value;
      }
      put_all(a.map, map_start, places, out);
    }
    if (MAPS == GRADIENTS && a.hess.data) {
      C out[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const C value = (LEVEL & OPTIONS) ? optional_hessian_value(p, v[j]) : hessian_value(p, v[j]);
        out[j] = p.filled ? p.fill : value;
      }
      put_all(a.hess, hess_start, places, out);
    }
  }

  D C value_of(C v, i64 at, bool of_label) const {
    if (MAPS == DISTRIBUTIONS) return distribution_value(p, a.map_kind, v);
    if (!(LEVEL & OPTIONS)) return gradient_value(p, v, of_label);
    const C soft = p.weighs && at < high ? option(a, SOFT, C()) * ((const C *)a.class_weight)[at] : (C)0;
    return optional_gradient_value(p, v, of_label, soft);
  }

  template <int W, int N> D void put_all(const Operand &o, i64 start, const Places<W> &places, C (&v)[N]) const {
    if (W == vector_of<T>::size && vectors) {
      store_vectors((T *)o.data + start, places, v);
      return;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const i64 at = places.at(j);
      if (at < high) store_one(o, start + at * o.class_stride, v[j], (const T *)nullptr);
    }
  }
};

// --- the kernel -------------------------------------------------------------------------------------

// Whether 16-byte stores to `out` (if there is one) fall where the row's 16-byte loads do.
template <class T> D bool lies_like(const Operand &out, const T *x, i64 start) {
  if (!out.data) return true;
  return out.class_stride == 1 && !is_wide<T>(out) && (((u64)x ^ (u64)((const T *)out.data + start)) & 15) == 0;
}

template <class T, int LEVEL, int MAPS> D void softmax_rows(const Arguments &a) {
  typedef typename compute<T>::type C;
  Gather<LEVEL, C> gather;
  gather.scaling = {option(a, SCALE, C()), (LEVEL & OPTIONS) ? option(a, CAP, C()) : (C)0, option(a, INV_CAP, C())};
  gather.class_weight = (const C *)a.class_weight;
  gather.smoothed = option(a, SMOOTHING, C()) > 0;
  gather.k = a.k;
  const bool READ_AGAIN = MAPS != NO_MAPS;
  Segments<1, READ_AGAIN, Arguments> segments(a);
  for (const auto turn : segments.rows()) {
    segments.turn_to(turn);
    const Team &team = segments.team;
    const i64 row = segments.row;
    const T *x = (const T *)a.x.data + row_start(a.x, row);
    const Label<C> y = label_of<T, C>(a, x, row);
    gather.y = gather.scaling.limited(y.logit);
    Joined<LEVEL, C> all;
    const auto gathered = [&](i64 low, i64 high) -> Joined<LEVEL, C> {
      gather.begin();
      sweep(a.x, x, low, high, a.k, team, gather);
      return {gather.r, gather.scaling.scale};
    };
    if (!segments.template gather<0>(all, gathered)) continue;
    if (segments.leads()) finish<LEVEL>(a, row, all.r, y, gather.scaling);
    if (MAPS != NO_MAPS && segments.real()) {
      const RowMap<C> p = map_of<LEVEL, MAPS>(a, row, all.r, y, gather.scaling);
      const i64 map_start = row_start(a.map, row), hess_start = row_start(a.hess, row);
      const bool vectors = in_line<T>(a.x, a.k) && lies_like(a.map, x, map_start) && lies_like(a.hess, x, hess_start);
      Write<T, LEVEL, MAPS, C> write = {a, p, map_start, hess_start, a.k, vectors};
      segments.write([&](i64 low, i64 high, int) { sweep(a.x, x, low, high, a.k, team, write); });
    }
  }
}
