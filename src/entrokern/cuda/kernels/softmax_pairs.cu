// KL divergence of two softmaxes of one dtype, and its gradient by the second, and JS of equal weights, in float32.
//
// The first sweep gives both normalisers, the second Σ p·(δ + e^-δ - 1) with δ = log(p/q), or what JS has for it: as many
// reads as it takes to be never negative, and 0 for equal rows. Rows that are not ordinary come out as NaN, for the careful kernels.

// The largest logit, and Σ e^(z - m). What of it is less than 2^-126 may be lost.
struct Normaliser {
  float m, Z;

  D void begin() {
    m = limits<float>::lowest();  // and not -inf, which no number can be subtracted from
    Z = 0;
  }

  template <int N> D void add(const float (&x)[N], float scale) {
    float top = x[0], sum = 0;
#pragma unroll
    for (int j = 1; j < N; ++j) top = larger(top, x[j]);
    if (top > m) {
      Z *= approximate_exp2((m - top) * scale);
      m = top;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) sum += approximate_exp2((x[j] - m) * scale);
    Z += sum;
  }

  // One of the powers is 1. The products are rounded by themselves, or the two sides of a pair would differ.
  D void join(const Normaliser &other, float scale) {
    const float top = larger(m, other.m);
    Z = product(Z, approximate_exp2((m - top) * scale)) + product(other.Z, approximate_exp2((other.m - top) * scale));
    m = top;
  }

  D bool ordinary() const { return Z > 0 && is_finite(Z); }
};

struct Normalisers {
  Normaliser p, q;
  float scale;

  template <int W, int N> D void operator()(const Places<W> &, float (&a)[N], float (&b)[N]) {
    p.add(a, scale);
    q.add(b, scale);
  }

  D void begin(float by) {
    p.begin();
    q.begin();
    scale = by;
  }
  D void join(const Normalisers &other) {
    p.join(other.p, scale);
    q.join(other.q, scale);
  }
  D Normalisers shuffled(int apart) const {
    return {{from_lane(p.m, apart), from_lane(p.Z, apart)}, {from_lane(q.m, apart), from_lane(q.Z, apart)}, scale};
  }
};

// What is compared at a class: log2 p and log2 q, but for the same log2 Z_p, and their difference δ. `shift` is
// log2 Z_p - log2 Z_q.
struct Comparison {
  float m_p, m_q, scale, shift;

  struct Class {
    float log2_p, log2_q, delta;

    D bool near() const { return magnitude(delta) < 1; }
  };

  D Class at(float a, float b) const {
    // The largest first: what rows have in common must leave no trace, and of near ones little be rounded.
    const float gap_p = a - m_p, gap_q = b - m_q;
    // Where both are 0 it is NaN; where p has a digit at all, δ is larger than this.
    const float delta = larger(fmaf(gap_p - gap_q, scale, -shift), -1000.0f);
    return {gap_p * scale, fmaf(gap_q, scale, shift), delta};
  }
};

// Σ p·(δ + e^-δ - 1), and Σ (p - q): by the way, as Σ p·δ less that, or for a gradient with the digits of its own. Of JS
// its terms, of which each needs p - q.
template <int QUANTITY, bool MAPS> struct Terms {
  enum { TERMS, OTHER };
  TwofoldSums<2> sums;
  float farthest;  // |δ|

  D void begin() {
    sums.begin();
    farthest = 0;
  }

  template <int N> D void add(const float (&a)[N], const float (&b)[N], const Comparison &pair) {
    float terms = 0, other = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const Comparison::Class c = pair.at(a[j], b[j]);
      const float d = c.delta, p = approximate_exp2(c.log2_p), q = approximate_exp2(c.log2_q), w = d * exp2_tail(d);
      const float difference = c.near() ? p * (d * (LN2 - w)) : p - q;
      if (QUANTITY == JS) {
        terms += js_term(p, q, difference);
      } else {
        float excess = d * w;
        if (!c.near()) {
          excess = fmaf(d, LN2, -1.0f);
          terms += q;
        }
        terms = fmaf(p, excess, terms);
      }
      other += MAPS || QUANTITY == JS ? difference : p * d;
      farthest = larger(farthest, magnitude(d));
    }
    sums.sum[TERMS].add(terms);
    sums.sum[OTHER].add(other);
  }

  D void join(const Terms &other) {
    sums.join(other.sums);
    farthest = larger(farthest, other.farthest);
  }
  D Terms shuffled(int apart) const { return {sums.shuffled(apart), from_lane(farthest, apart)}; }
};

// (q·error - (p - q))·factor, by p - q: p·error·factor - (p - q)·(1 + error)·factor
template <class T> struct Slopes {
  MapWriter<T> out;
  Comparison pair;
  float by_p, by_difference;

  template <int W, int N> D void operator()(const Places<W> &places, float (&a)[N], float (&b)[N]) {
    float g[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const Comparison::Class c = pair.at(a[j], b[j]);
      const float d = c.delta, p = exp2_of(c.log2_p), q = exp2_of(c.log2_q);
      const float difference = c.near() ? p * (d * fmaf(-d, exp2_tail(d), LN2)) : p - q;
      g[j] = fmaf(p, by_p, -(difference * by_difference));
    }
    out.put(places, g);
  }
};

template <class T, int QUANTITY, bool MAPS> D void softmax_pair_rows(const Arguments &a) {
  const float lowest = -limits<float>::inf();
  Segments<2, true, Arguments> segments(a);
  for (const auto turn : segments.rows()) {
    segments.turn_to(turn);
    const Team &team = segments.team;
    const i64 row = segments.row;
    const T *x = (const T *)a.x.data + row_start(a.x, row), *y = (const T *)a.y.data + row_start(a.y, row);
    const auto normalisers = [&](i64 low, i64 high) {
      Normalisers part;
      part.begin(a.scale);
      sweep_pairs(a.x, x, a.y, y, low, high, a.k, team, lowest, lowest, part);
      return part;
    };
    Normalisers all;
    if (!segments.gather<0>(all, normalisers)) continue;
    const Normaliser &p = all.p, &q = all.q;
    const Comparison pair = {p.m, q.m, a.scale, log2f(p.Z / q.Z)};
    const auto compared = [&](i64 low, i64 high) {
      Adding<Terms<QUANTITY, MAPS>, Comparison> part = {{}, pair};
      part.r.begin();
      sweep_pairs(a.x, x, a.y, y, low, high, a.k, team, lowest, lowest, part);
      return part.r;
    };
    Terms<QUANTITY, MAPS> terms;
    if (!segments.gather<1>(terms, compared)) continue;
    // Were δ right, Σ (p - q) would be 0: the error of the shift makes it that, and adds half its square to the terms, of
    // JS a quarter of that.
    const float rough = terms.sums.sum[0].value() / p.Z, other = terms.sums.sum[1].value() / p.Z;
    const float error = MAPS || QUANTITY == JS ? other : fmaf(other, LN2, -rough);
    const float added = (QUANTITY == JS ? 0.125f : 0.5f) * error * error, total = rough - added;
    // Where that is most of it, and where numbers below 2^-126 might matter (each times δ), the careful ones are asked.
    const float least = 1.97215226e-31f * (float)a.k * (QUANTITY == JS ? 1.0f : larger(terms.farthest, 1.0f));
    const bool small = terms.farthest > 0 && total < least;
    const bool ordinary = p.ordinary() && q.ordinary() && added <= 0.5f * rough && !small;
    const float loss = ordinary ? or_left(total * a.unit) : limits<float>::nan();
    if (segments.leads()) a.loss[row] = loss;
    if (!MAPS) continue;
    const float f = factor_of(a, row);
    if (!segments.real() || (loss != loss && f != 0)) continue;
    Slopes<T> slopes;
    slopes.out = writer_of(a.grad, row, a.k, x, side_by_side(a.x, x, a.y, y, a.k));
    slopes.pair = pair;
    slopes.by_p = error * (f / p.Z);
    slopes.by_difference = (1 + error) * (f / p.Z);
    segments.write([&](i64 low, i64 high, int) {
      if (f == 0) {
        fill_zero(slopes.out, low, high, team);
      } else {
        sweep_pairs(a.x, x, a.y, y, low, high, a.k, team, lowest, lowest, slopes);
      }
    });
  }
}
