// Cross-entropy of logits with target distributions of their own dtype, and its gradient, in float32.
//
// One sweep gives the loss: the row's record, with Σ b and Σ b·(top - z) beside it. The gradient A·p - b is a
// difference, and where the softmax comes near its target there is little left of it: so exponentials near 1 are kept
// as e^z - 1, and what is subtracted is subtracted exactly. Rows that are not ordinary come out as NaN, for the careful
// kernels, and their gradient is not written.

struct Soft {
  Record<float> r;  // its gaps are Σ b·(top - x), its weights Σ b
  float scale;

  D void begin() {
    r.m = r.top = limits<float>::lowest();
    r.S = r.n = r.gaps = r.weights = 0;
  }

  D void raise(float m) {
    const float d = (r.m - m) * scale;
    r.S = exp2_of(d) * (r.S + r.n);
    if (r.weights != 0) r.gaps += r.weights * (m - r.m);
    r.n = 0;
    r.m = r.top = m;
  }

  template <int W, int N> D void operator()(const Places<W> &, float (&x)[N], float (&b)[N]) {
    float m = x[0];
#pragma unroll
    for (int j = 1; j < N; ++j) m = larger(m, x[j]);
    if (m > r.m) raise(m);
    float sum = 0, n = 0, gaps = 0, mass = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float d = x[j] - r.m;
      const bool below = x[j] != r.m;
      sum += below ? exp2_of(d * scale) : 0.0f;
      n += below ? 0.0f : 1.0f;
      gaps += b[j] == 0 ? 0.0f : -d * b[j];
      mass += b[j] >= 0 ? b[j] : limits<float>::nan();
    }
    r.S += sum;
    r.n += n;
    r.gaps += gaps;
    r.weights += mass;
  }

  D void join(const Soft &other) {
    const bool flip = other.r.m > r.m, tie = other.r.m == r.m;
    const Record<float> high = flip ? other.r : r, low = flip ? r : other.r;
    const float d = larger((low.m - high.m) * scale, limits<float>::floor());
    r.m = r.top = high.m;
    r.S = high.S + (tie ? low.S : exp2_of(d) * (low.S + low.n));
    r.n = high.n + (tie ? low.n : 0.0f);
    r.gaps = high.gaps + (low.gaps + (tie || low.weights == 0 ? 0.0f : low.weights * (high.m - low.m)));
    r.weights = high.weights + low.weights;
  }

  D Soft shuffled(int apart) const {
    Soft o = *this;
    o.r.m = from_lane(r.m, apart);
    o.r.S = from_lane(r.S, apart);
    o.r.n = from_lane(r.n, apart);
    o.r.gaps = from_lane(r.gaps, apart);
    o.r.weights = from_lane(r.weights, apart);
    return o;
  }
};

// Σ e^z with the largest logit known: Σ (e^z - 1) of those near it, which are counted, Σ e^z of the others; and Σ b.
struct Masses {
  enum { NEAR, FAR, COUNT, MASS };
  TwofoldSums<4> sums;
  float m, inv_T, scale;

  template <int W, int N> D void operator()(const Places<W> &, float (&x)[N], float (&b)[N]) {
    float near = 0, far = 0, count = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float u = (x[j] - m) * inv_T;
      const bool close = u >= -1.0f;
      near += close ? excess_of(u) : 0.0f;
      far += close ? 0.0f : exp2_of((x[j] - m) * scale);
      count += close ? 1.0f : 0.0f;
      sums.sum[MASS].add(b[j]);
    }
    sums.sum[NEAR].add(near);
    sums.sum[FAR].add(far);
    sums.sum[COUNT].add(count);
  }
};

// factor·(A·e^z - b·Z) for a factor that has been divided by Z = 1 + S: of numbers near each other only what is exact is
// subtracted.
template <class T> struct Slopes {
  MapWriter<T> out;
  float m, inv_T, scale, factor;
  Twofold A, S;

  template <int W, int N> D void operator()(const Places<W> &places, float (&x)[N], float (&b)[N]) {
    float g[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float u = (x[j] - m) * inv_T;
      const bool close = u >= -1.0f;
      const float e = close ? excess_of(u) : exp2_of((x[j] - m) * scale);
      const Twofold bS = exact_product(b[j], S.high);
      Twofold rest = exact_sum(close ? A.high : 0.0f, -b[j]);
      rest.add(-bS.high);
      rest.low += (close ? A.low : 0.0f) - (bS.low + b[j] * S.low);
      g[j] = (rest.high + (rest.low + A.high * e)) * factor;
    }
    out.put(places, g);
  }
};

template <class T, bool MAPS> D void soft_target_rows(const Arguments &a) {
  for (const auto [team, row, real] : Rows(a.n, a.team)) {
    const T *x = (const T *)a.x.data + row_start(a.x, row), *y = (const T *)a.y.data + row_start(a.y, row);
    Soft soft, all;
    soft.scale = a.scale;
    for (i64 low = 0; low < a.k; low += SEGMENT) {
      soft.begin();
      sweep_pairs(a.x, x, a.y, y, low, segment_end(low, a.k), a.k, team, -limits<float>::inf(), 0, soft);
      const Soft one = joined_by(team, soft);
      if (low == 0) {
        all = one;
      } else {
        all.join(one);
      }
    }
    const Record<float> &r = all.r;
    const bool ordinary = r.n > 0 && is_finite(r.m);
    const float L = log1p_of(r.S + (r.n - 1));
    const float loss = ordinary ? or_left((r.weights * L + r.gaps * a.inv_T) * a.unit) : limits<float>::nan();
    if (real && team.lane == 0) a.loss[row] = loss;
    if (!MAPS) continue;
    Masses masses;
    masses.sums.begin();
    masses.m = r.m;
    masses.inv_T = a.inv_T;
    masses.scale = a.scale;
    sweep_pairs(a.x, x, a.y, y, 0, a.k, a.k, team, -limits<float>::inf(), 0, masses);
    const TwofoldSums<4> sums = joined_by(team, masses.sums);
    const float f = factor_of(a, row);
    if (!real || (loss != loss && f != 0)) continue;
    Twofold S = sums.sum[Masses::COUNT];
    S.add(-1.0f);  // the largest itself
    S.add(sums.sum[Masses::FAR].high);
    S.add(sums.sum[Masses::NEAR].high);
    S.low += sums.sum[Masses::FAR].low + sums.sum[Masses::NEAR].low;
    Slopes<T> slopes;
    slopes.out = writer_of(a.grad, row, a.k, x, side_by_side(a.x, x, a.y, y, a.k));
    slopes.m = r.m;
    slopes.inv_T = a.inv_T;
    slopes.scale = a.scale;
    slopes.A = sums.sum[Masses::MASS];
    slopes.S = S;
    slopes.factor = f / (1.0f + S.value());
    if (f == 0) {
      fill_zero(slopes.out, team);
      continue;
    }
    sweep_pairs(a.x, x, a.y, y, 0, a.k, a.k, team, -limits<float>::inf(), 0, slopes);
  }
}
