// KL divergence of two softmaxes of one dtype, and its gradient by the second, in float32.
//
// The first sweep gives both normalisers, the second Σ p·(δ + e^-δ - 1) with δ = log(p/q): as many reads as it takes to
// be never negative, and 0 for equal rows. Rows that are not ordinary come out as NaN, for the careful kernels.

// The largest logit of both rows, and Σ e^(z - m)
struct Normalisers {
  Joined<PLAIN, float> p, q;

  D void join(const Normalisers &other) {
    p.join(other.p);
    q.join(other.q);
  }
  D Normalisers shuffled(int apart) const { return {p.shuffled(apart), q.shuffled(apart)}; }
};

struct GatherBoth {
  Gather<PLAIN, float> p, q;

  template <int W, int N> D void operator()(const Places<W> &places, float (&a)[N], float (&b)[N]) {
    p(places, a);
    q(places, b);
  }
};

// What is compared: p and q at a class, log(p/q) and p - q. `shift` is log Z_p - log Z_q.
struct Comparison {
  float m_p, m_q, inv_T, scale, p_factor, q_factor, shift;

  D void at(float a, float b, float &p, float &q, float &delta, float &difference, float &term) const {
    const float gap_p = a - m_p, gap_q = b - m_q;
    p = exp2_of(gap_p * scale) * p_factor;
    q = exp2_of(gap_q * scale) * q_factor;
    // (a - m_a) - (b - m_b) first: for near operands it is small, and so is what it loses. Where both are 0 it is
    // NaN, and becomes a large number that nothing is multiplied by.
    delta = larger((gap_p - gap_q) * inv_T - shift, -1e30f);
    const float mean = p * delta;
    if (magnitude(delta) < 1) {
      const float t = delta * expm1_tail(delta);
      term = mean * t;
      difference = mean - mean * t;
    } else {
      difference = p - q;
      term = mean - difference;
    }
  }
};

struct Terms {
  enum { TERMS, ERROR };
  TwofoldSums<2> sums;
  Comparison pair;

  template <int W, int N> D void operator()(const Places<W> &, float (&a)[N], float (&b)[N]) {
    float terms = 0, error = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      float p, q, delta, difference, term;
      pair.at(a[j], b[j], p, q, delta, difference, term);
      terms += term;
      error += difference;
    }
    sums.sum[TERMS].add(terms);
    sums.sum[ERROR].add(error);
  }
};

template <class T> struct Slopes {
  MapWriter<T> out;
  Comparison pair;
  float error, factor;

  template <int W, int N> D void operator()(const Places<W> &places, float (&a)[N], float (&b)[N]) {
    float g[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      float p, q, delta, difference, term;
      pair.at(a[j], b[j], p, q, delta, difference, term);
      g[j] = (q * error - difference) * factor;
    }
    out.put(places, g);
  }
};

template <class T, bool MAPS> D void softmax_pair_rows(const Arguments &a) {
  const float lowest = -limits<float>::inf();
  for (const auto [team, row, real] : Rows(a.n, a.team)) {
    const T *x = (const T *)a.x.data + row_start(a.x, row), *y = (const T *)a.y.data + row_start(a.y, row);
    GatherBoth gather;
    gather.p.scaling = gather.q.scaling = {a.scale, 0, 0};
    Normalisers all;
    all.p.scale = all.q.scale = a.scale;
    for (i64 low = 0; low < a.k; low += SEGMENT) {
      gather.p.begin();
      gather.q.begin();
      sweep_pairs(a.x, x, a.y, y, low, segment_end(low, a.k), a.k, team, lowest, lowest, gather);
      Normalisers one = all;
      one.p.r = gather.p.r;
      one.q.r = gather.q.r;
      one = joined_by(team, one);
      if (low == 0) {
        all = one;
      } else {
        all.join(one);
      }
    }
    const Record<float> &p = all.p.r, &q = all.q.r;
    const float Z_p = p.S + p.n, Z_q = q.S + q.n;
    const Comparison pair = {p.m, q.m, a.inv_T, a.scale, 1 / Z_p, 1 / Z_q, logf(Z_p / Z_q)};
    Terms terms;
    terms.sums.begin();
    terms.pair = pair;
    sweep_pairs(a.x, x, a.y, y, 0, a.k, a.k, team, lowest, lowest, terms);
    const TwofoldSums<2> sums = joined_by(team, terms.sums);
    // Were δ right, Σ (p - q) would be 0: the error of the shift makes it that, and adds half its square to the terms.
    const float error = sums.sum[Terms::ERROR].value();
    const float total = sums.sum[Terms::TERMS].value() - 0.5f * error * error;
    const bool ordinary = p.n > 0 && q.n > 0 && is_finite(p.m) && is_finite(q.m) && total == total;
    const float loss = ordinary ? or_left(larger(total, 0.0f) * a.unit) : limits<float>::nan();
    if (real && team.lane == 0) a.loss[row] = loss;
    if (!MAPS) continue;
    const float f = factor_of(a, row);
    if (!real || (loss != loss && f != 0)) continue;
    Slopes<T> slopes;
    slopes.out = writer_of(a.grad, row, a.k, x, side_by_side(a.x, x, a.y, y, a.k));
    slopes.pair = pair;
    slopes.error = error;
    slopes.factor = f;
    if (f == 0) {
      fill_zero(slopes.out, team);
      continue;
    }
    sweep_pairs(a.x, x, a.y, y, 0, a.k, a.k, team, lowest, lowest, slopes);
  }
}
