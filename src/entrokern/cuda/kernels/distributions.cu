// The careful kernels: cross-entropy, entropy and divergences of distributions in any form, with all options, in float64.
//
// Whatever has a kernel of its own elsewhere does not come here. Every number is read by its dtype at run time, and
// rows are read again for each sweep over them.

enum { LOGITS, LOG_PROBS, PROBS };

struct Arguments {
  Operand x, y, labels, grad, hess, loss;  // grad and hess are those by p and by q of a divergence
  const double *class_weight, *row_factors, *map_scale;  // null: none
  i64 n, k, ignore_index;
  int team, form, y_form, has_labels, has_ignored, js, repair;  // repair: only rows whose loss is NaN so far
  double temperature, unit, factor, smoothing, z_loss, cap, js_weight;
};

// --- a distribution -----------------------------------------------------------------------------------

struct Distribution {
  const Operand &o;
  i64 start;
  int form;
  double inv_T;
  Scaling<double> scaling;
  double m, top, S, Z, L;  // of logits: see Record

  D double raw(i64 c) const { return load_number(o, start + c * o.class_stride); }
  D double gap(double v) const { return product(top - scaling.shown(v), inv_T); }

  // log p, but for log Z
  D double log_of(double v) const { return form == LOGITS ? -gap(v) : form == LOG_PROBS ? v : log(v); }
  D double p_of(double v) const {
    if (form == PROBS) return v >= 0 ? v : limits<double>::nan();
    return form == LOG_PROBS ? exp(v) : exp(-gap(v)) / Z;
  }
};

// A row's largest logit and log Z; a row without a finite maximum has no softmax: everything is NaN.
D Distribution distribution(const Operand &o, i64 row, int form, double T, double cap, i64 k, const Team &team) {
  Distribution d = {o, row_start(o, row), form, 1 / T, {1.4426950408889634 / T, cap, cap == 0 ? 0.0 : 1 / cap}, 0, 0, 0, 1, 0};
  if (form != LOGITS) return d;
  Gather<OPTIONS, double> gather;
  gather.scaling = d.scaling;
  gather.class_weight = nullptr;
  gather.smoothed = false;
  gather.y = limits<double>::inf();
  Joined<OPTIONS, double> all;
  all.scale = d.scaling.scale;
  for (i64 low = 0; low < k; low += SEGMENT) {
    const i64 high = segment_end(low, k);
    gather.begin();
    for (i64 c = low + team.lane; c < high; c += team.size) {
      double one[1] = {d.raw(c)};
      gather(Places<1>{c, 0}, one);
    }
    Joined<OPTIONS, double> part = all;
    part.r = gather.r;
    part = joined_by(team, part);
    if (low == 0) {
      all = part;
    } else {
      all.join(part);
    }
  }
  const Record<double> &r = all.r;
  d.m = r.m;
  d.top = r.n == 0 ? -limits<double>::inf() : r.top;
  d.S = r.S + (r.n - 1);
  d.Z = r.S + r.n;
  d.L = is_finite(d.top) ? log1p(d.S) : limits<double>::nan();
  return d;
}

// --- cross-entropy --------------------------------------------------------------------------------------

// The weights of a target: w_c·((1-ε)·target_c + ε/k), of a distribution or of a label
struct Target {
  const Arguments &a;
  i64 start, label;

  D double operator()(i64 c) const {
    double hot = c == label;
    if (a.y.data) {
      hot = load_number(a.y, start + c * a.y.class_stride);
      if (hot < 0) hot = limits<double>::nan();
    }
    const double w = a.class_weight ? a.class_weight[c] : 1.0;
    return w * ((1 - a.smoothing) * hot + a.smoothing / (double)a.k);
  }
};

// What a row's maps are multiplied by.
D double row_factor(const Arguments &a, i64 row) {
  return a.factor * (a.map_scale ? *a.map_scale : 1.0) * (a.row_factors ? a.row_factors[row] : 1.0);
}

D double softcap_slope(double x, double cap) {
  if (cap == 0) return 1;
  const double u = exp(-2 * fabs(x) / cap);  // 1 - tanh² would round to 0 from x = 19·cap on
  return 4 * u / ((1 + u) * (1 + u));
}

D void cross_entropy_row(const Arguments &a, i64 row, bool real, const Team &team) {
  i64 label = -1;
  bool ignored = false, bad = false;
  if (a.has_labels) {
    label = load_integer(a.labels, row_start(a.labels, row));
    ignored = a.has_ignored && label == a.ignore_index;
    bad = !ignored && (label < 0 || label >= a.k);
  }
  const Target target = {a, start_of(a.y, row), label};
  const Distribution P = distribution(a.x, row, a.form, a.temperature, a.cap, a.k, team);
  enum { LOSS, MASS };
  Sums<2> sums;
  sums.begin();
  for (i64 c = team.lane; c < a.k; c += team.size) {
    const double v = P.raw(c), b = target(c);
    const double surprise = a.form == LOGITS ? P.gap(v) : -P.log_of(v);
    // A NaN makes its row NaN, also where the target is 0; of logits log Z says so.
    const bool nothing = b == 0 && (a.form == LOGITS || surprise == surprise);
    sums.add(LOSS, nothing ? 0.0 : b == 0 ? surprise : b * surprise);
    sums.add(MASS, b);
  }
  sums = joined_by(team, sums);
  if (!real) return;
  const double A = sums.value(MASS);
  double loss = a.form == LOGITS ? A * P.L + sums.value(LOSS) : sums.value(LOSS);
  const bool infinite = a.form == LOGITS && P.top == limits<double>::inf() && P.S == P.S;
  if (infinite) loss = sums.value(LOSS);  // +inf, or NaN where a part of the target is on the infinite logit
  const double lse = infinite ? P.top : P.top * P.inv_T + P.L;
  double value = a.unit * loss;
  if (a.z_loss != 0) value += a.z_loss * lse * lse;
  if (bad) value = limits<double>::nan();
  if (team.lane == 0) store_number(a.loss, row, ignored ? 0.0 : value);
  const double factor = row_factor(a, row);
  const bool nothing = ignored || factor == 0;
  const i64 grad = start_of(a.grad, row), hess = start_of(a.hess, row);
  if (nothing || value != value || infinite) {
    fill(a.grad, grad, a.k, team, nothing ? 0.0 : limits<double>::nan());
    fill(a.hess, hess, a.k, team, nothing ? 0.0 : limits<double>::nan());
    return;
  }
  if (!a.grad.data && !a.hess.data) return;
  for (i64 c = team.lane; c < a.k; c += team.size) {
    const double v = P.raw(c), b = target(c);
    double slope, bend = 0;
    if (a.form == LOGITS) {
      const double p = P.p_of(v), rest = P.scaling.limited(v) == P.m ? P.S / P.Z : 1 - p, chain = P.inv_T * softcap_slope(v, a.cap);
      // A·p - b, split so that the true class gives -(Σ of the others' p) and never p - 1
      slope = a.unit * ((A - b) * p - b * rest);
      if (a.z_loss != 0) slope += 2 * a.z_loss * lse * p;
      slope *= chain;
      bend = a.unit * A * p * rest * chain * chain;
    } else {
      slope = -a.unit * (a.form == LOG_PROBS ? b : times(b, 1 / v));
    }
    if (a.grad.data) store_number(a.grad, grad + c * a.grad.class_stride, factor * slope);
    if (a.hess.data) store_number(a.hess, hess + c * a.hess.class_stride, factor * bend);
  }
}

// --- entropy of probabilities and log-probabilities -----------------------------------------------------

D void entropy_row(const Arguments &a, i64 row, bool real, const Team &team) {
  const Distribution P = distribution(a.x, row, a.form, 1, 0, a.k, team);
  Sums<1> sums;
  sums.begin();
  for (i64 c = team.lane; c < a.k; c += team.size) {
    const double v = P.raw(c);
    sums.add(0, -times(P.p_of(v), P.log_of(v)));
  }
  sums = joined_by(team, sums);
  if (!real) return;
  const double value = a.unit * sums.value(0), factor = row_factor(a, row);
  if (team.lane == 0) store_number(a.loss, row, value);
  if (!a.grad.data) return;
  const i64 grad = row_start(a.grad, row);
  if (factor == 0 || value != value) {
    fill(a.grad, grad, a.k, team, factor == 0 ? 0.0 : limits<double>::nan());
    return;
  }
  for (i64 c = team.lane; c < a.k; c += team.size) {
    const double v = P.raw(c), p = P.p_of(v), u = P.log_of(v);
    const double slope = a.form == PROBS ? -(u + 1) : -(times(p, u) + p);
    store_number(a.grad, grad + c * a.grad.class_stride, factor * a.unit * slope);
  }
}

// --- divergences ------------------------------------------------------------------------------------------

// Two distributions at one class: `ratio` is log(p/q), `term` is p·log(p/q) - p + q.
struct Pair {
  double p, q, difference, ratio, term;
};

D Pair pair_of(const Distribution &P, const Distribution &Q, i64 c) {
  const double a = P.raw(c), b = Q.raw(c);
  Pair t = {P.p_of(a), Q.p_of(b), 0, 0, 0};
  t.difference = t.p - t.q;
  if (P.form == PROBS && Q.form == PROBS) {
    t.ratio = t.p == t.q ? 0.0 : log_ratio(t.p, t.q, t.difference);
    t.term = divergence_term(t.p, t.q, t.difference, t.ratio);
    return t;
  }
  // (a - m_a) - (b - m_b) first: for near operands it is small, and so is what it loses.
  const double d = (P.log_of(a) - Q.log_of(b)) - (P.L - Q.L);
  if (P.form == PROBS || Q.form == PROBS) {
    t.ratio = t.p == t.q ? 0.0 : d;
    t.term = divergence_term(t.p, t.q, t.difference, t.ratio);
    return t;
  }
  t.ratio = t.p == 0 && t.q == 0 ? 0.0 : d;
  if (fabs(t.ratio) < 1) {
    t.difference = t.p * (t.ratio * (1 - t.ratio * expm1_tail(t.ratio)));
    t.term = t.p * t.ratio * t.ratio * expm1_tail(t.ratio);
  } else {
    t.term = t.p == 0 ? t.q : t.p * t.ratio - t.difference;
  }
  return t;
}

// The derivatives by p and q (by their logarithms unless they are given as probabilities), and the term.
struct Slopes {
  double term, by_p, by_q;
};

D Slopes kl_slopes(const Arguments &a, const Pair &t) {
  // A constant in the slope by log p leaves the gradient by logits unchanged: add none there.
  const double slope = t.ratio + (a.form == LOGITS ? 0.0 : 1.0);
  const double by_q = a.y_form == PROBS ? -(t.p == 0 ? 0 * t.q : t.p / t.q) : -t.p;
  return {t.term, a.form == PROBS ? slope : times(t.p, slope), by_q};
}

D Slopes js_slopes(const Arguments &a, const Pair &t) {
  const double w = a.js_weight, m = w * t.p + (1 - w) * t.q;
  if (m == 0) return {0, 0, 0};
  const double dp = (1 - w) * t.difference, dq = -w * t.difference;  // p - m and q - m without a subtraction
  const double rp = log_ratio(t.p, m, dp), rq = log_ratio(t.q, m, dq);
  const double term = w * divergence_term(t.p, m, dp, rp) + (1 - w) * divergence_term(t.q, m, dq, rq);
  return {term, w * (a.form == PROBS ? rp : times(t.p, rp)), (1 - w) * (a.y_form == PROBS ? rq : times(t.q, rq))};
}

D void divergence_row(const Arguments &a, i64 row, bool real, const Team &team) {
  const Distribution P = distribution(a.x, row, a.form, a.form == LOGITS ? a.temperature : 1, 0, a.k, team);
  const Distribution Q = distribution(a.y, row, a.y_form, a.y_form == LOGITS ? a.temperature : 1, 0, a.k, team);
  enum { TERMS, EXCESS, SUM_P, BY_P, BY_Q };
  Sums<5> sums;
  sums.begin();
  for (i64 c = team.lane; c < a.k; c += team.size) {
    const Pair t = pair_of(P, Q, c);
    const Slopes s = a.js ? js_slopes(a, t) : kl_slopes(a, t);
    sums.add(TERMS, s.term);
    sums.add(EXCESS, t.difference);
    sums.add(SUM_P, t.p);
    sums.add(BY_P, s.by_p);
    sums.add(BY_Q, s.by_q);
  }
  sums = joined_by(team, sums);
  if (!real) return;
  double loss = sums.value(TERMS);
  if (a.form == LOGITS && a.y_form == LOGITS) {
    // Two softmaxes both sum to 1: what their sums differ by is the error of lse - lse, which adds half its square to KL.
    const double error = sums.value(EXCESS), added = (a.js ? a.js_weight * (1 - a.js_weight) : 1) * 0.5 * error * error;
    if (loss > 0) loss = larger(loss - added, 0.0);
  } else if (!a.js) {
    loss += sums.value(EXCESS);
  }
  const double value = a.unit * loss, factor = row_factor(a, row) * a.unit;
  if (team.lane == 0) store_number(a.loss, row, value);
  const i64 at_p = start_of(a.grad, row), at_q = start_of(a.hess, row);
  if (factor == 0 || value != value) {
    const double all = factor == 0 ? 0.0 : limits<double>::nan();
    fill(a.grad, at_p, a.k, team, all);
    fill(a.hess, at_q, a.k, team, all);
    return;
  }
  if (!a.grad.data && !a.hess.data) return;
  const double by_p = sums.value(BY_P), by_q = sums.value(BY_Q);
  const double excess = a.form == LOGITS ? 0.0 : sums.value(SUM_P) - 1;
  for (i64 c = team.lane; c < a.k; c += team.size) {
    const Pair t = pair_of(P, Q, c);
    const Slopes s = a.js ? js_slopes(a, t) : kl_slopes(a, t);
    if (a.grad.data) {
      const double g = a.form == LOGITS ? (s.by_p - t.p * by_p) * P.inv_T : s.by_p;
      store_number(a.grad, at_p + c * a.grad.class_stride, factor * g);
    }
    if (a.hess.data) {
      double g = s.by_q;
      // q·Σp - p, from differences that stay small
      if (a.y_form == LOGITS) g = (a.js ? s.by_q - t.q * by_q : t.q * excess - t.difference) * Q.inv_T;
      store_number(a.hess, at_q + c * a.hess.class_stride, factor * g);
    }
  }
}

// --- the kernels ------------------------------------------------------------------------------------------

// Whether any thread of the block says so; all come here together.
D bool any_of_block(bool says) {
  __shared__ int said;
  __syncthreads();
  if (threadIdx.x == 0) said = 0;
  __syncthreads();
  if (says) said = 1;
  __syncthreads();
  return said != 0;
}

template <class OfRow> D void for_rows(const Arguments &a, OfRow of_row) {
  for (auto [team, row, real] : Rows(a.n, a.team)) {
    if (a.repair) {
      const double so_far = load_number(a.loss, row);
      real = real && so_far != so_far;
      if (!any_of_block(real)) continue;
    }
    of_row(a, row, real, team);
  }
}

D void cross_entropy_rows(const Arguments &a) {
  for_rows(a, [](const Arguments &a, i64 row, bool real, const Team &team) { cross_entropy_row(a, row, real, team); });
}
D void entropy_rows(const Arguments &a) {
  for_rows(a, [](const Arguments &a, i64 row, bool real, const Team &team) { entropy_row(a, row, real, team); });
}
D void divergence_rows(const Arguments &a) {
  for_rows(a, [](const Arguments &a, i64 row, bool real, const Team &team) { divergence_row(a, row, real, team); });
}
