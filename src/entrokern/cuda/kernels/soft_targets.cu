// Cross-entropy of logits with target distributions of their own dtype, and its gradient, in float32.
//
// One sweep gives the loss: the row's record, with Σ b and Σ b·(top - z) beside it. The gradient A·p - b is a
// difference, and where the softmax comes near its target there is little left of it: so exponentials near 1 are kept
// as e^z - 1, which wants the largest logit first, and what is subtracted is subtracted exactly. Rows that are not
// ordinary come out as NaN, for the careful kernels, and their gradient is not written.

struct Soft {
  Record<float> r;  // its gaps are Σ b·(top - x), its weights Σ b
  float scale;

  D void begin(float by) {
    r.m = r.top = limits<float>::lowest();
    r.S = r.n = r.gaps = r.weights = 0;
    scale = by;
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

// --- with a gradient ---------------------------------------------------------------------------------------

struct Largest {
  float m;

  template <int W, int N> D void operator()(const Places<W> &, float (&x)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) m = larger(m, x[j]);
  }
  D void join(const Largest &other) { m = larger(m, other.m); }
  D Largest shuffled(int apart) const { return {from_lane(m, apart)}; }
};

// What an exponential of the row is of: e^(x - m), as powers of 2.
struct Exponent {
  float m, scale;
};

// With the largest logit known: Σ b, Σ b·(m - x), and Σ e^z as records keep it with options: how many are near 1, and the rest.
struct Masses {
  enum { REST, COUNTED, MASS, GAPS };
  TwofoldSums<4> sums;
  float lowest;

  D void begin() {
    sums.begin();
    lowest = 0;
  }

  template <int N> D void add(const float (&x)[N], const float (&b)[N], const Exponent &exponent) {
    float rest = 0, n = 0, gaps = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float gap = x[j] - exponent.m;
      bool counted;
      rest += excess_or_exp(gap * exponent.scale, counted);
      n += counted ? 1.0f : 0.0f;
      gaps -= b[j] == 0 ? 0.0f : gap * b[j];
      lowest = smaller(lowest, b[j]);  // a NaN will be seen in the mass
      sums.sum[MASS].add(b[j]);
    }
    sums.sum[REST].add(rest);
    sums.sum[COUNTED].high += n;
    sums.sum[GAPS].add(gaps);
  }

  D void join(const Masses &other) {
    sums.join(other.sums);
    lowest = smaller(lowest, other.lowest);
  }
  D Masses shuffled(int apart) const { return {sums.shuffled(apart), from_lane(lowest, apart)}; }
};

// factor·(A·e^z - b·Z) for a factor that has been divided by Z: what is left of numbers near each other is rounded once.
template <class T> struct Slopes {
  MapWriter<T> out;
  Exponent exponent;
  float factor;
  Twofold A, Z;

  template <int W, int N> D void operator()(const Places<W> &places, float (&x)[N], float (&b)[N]) {
    float g[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      bool counted;
      const float e = excess_or_exp((x[j] - exponent.m) * exponent.scale, counted);
      const float high = fmaf(-b[j], Z.high, counted ? A.high : 0.0f), low = fmaf(-b[j], Z.low, counted ? A.low : 0.0f);
      g[j] = (high + fmaf(A.high, e, low)) * factor;
    }
    out.put(places, g);
  }
};

template <class T> D void soft_target_rows_and_maps(const Arguments &a) {
  const float lowest = -limits<float>::inf();
  Segments<2, true, Arguments> segments(a);
  for (const auto turn : segments.rows()) {
    segments.turn_to(turn);
    const Team &team = segments.team;
    const i64 row = segments.row;
    const T *x = (const T *)a.x.data + row_start(a.x, row), *y = (const T *)a.y.data + row_start(a.y, row);
    const auto largest = [&](i64 low, i64 high) {
      Largest part = {limits<float>::lowest()};
      sweep(a.x, x, low, high, a.k, team, part);
      return part;
    };
    Largest of_all;
    if (!segments.gather<0>(of_all, largest)) continue;
    const Exponent exponent = {of_all.m, a.scale};
    const auto summed = [&](i64 low, i64 high) {
      Adding<Masses, Exponent> part = {{}, exponent};
      part.r.begin();
      sweep_pairs(a.x, x, a.y, y, low, high, a.k, team, lowest, 0, part);
      return part.r;
    };
    Masses masses;
    if (!segments.gather<1>(masses, summed)) continue;
    const Twofold &rest = masses.sums.sum[Masses::REST], &A = masses.sums.sum[Masses::MASS];
    const Twofold &gaps = masses.sums.sum[Masses::GAPS];
    Twofold S = masses.sums.sum[Masses::COUNTED];
    const bool ordinary = S.high > 0 && is_finite(exponent.m) && masses.lowest >= 0;
    S.add(-1.0f);  // the largest itself
    S.add(rest.high);
    S.low += rest.low;
    const float L = log1p_of(S.value());
    const float loss = ordinary ? or_left((A.value() * L + gaps.value() * a.inv_T) * a.unit) : limits<float>::nan();
    if (segments.leads()) a.loss[row] = loss;
    const float f = factor_of(a, row);
    if (!segments.real() || (loss != loss && f != 0)) continue;
    Slopes<T> slopes;
    slopes.out = writer_of(a.grad, row, a.k, x, side_by_side(a.x, x, a.y, y, a.k));
    slopes.exponent = exponent;
    slopes.A = A;
    slopes.Z = exact_sum(1.0f, S.high);
    slopes.Z.low += S.low;
    slopes.factor = f / slopes.Z.value();
    segments.write([&](i64 low, i64 high, int) {
      if (f == 0) {
        fill_zero(slopes.out, low, high, team);
      } else {
        sweep_pairs(a.x, x, a.y, y, low, high, a.k, team, lowest, 0, slopes);
      }
    });
  }
}

// --- without -----------------------------------------------------------------------------------------------

template <class T> D void soft_target_rows(const Arguments &a) {
  Segments<1, false, Arguments> segments(a);
  for (const auto turn : segments.rows()) {
    segments.turn_to(turn);
    const Team &team = segments.team;
    const i64 row = segments.row;
    const T *x = (const T *)a.x.data + row_start(a.x, row), *y = (const T *)a.y.data + row_start(a.y, row);
    const auto gathered = [&](i64 low, i64 high) {
      Soft part;
      part.begin(a.scale);
      sweep_pairs(a.x, x, a.y, y, low, high, a.k, team, -limits<float>::inf(), 0, part);
      return part;
    };
    Soft all;
    if (!segments.gather<0>(all, gathered)) continue;
    const Record<float> &r = all.r;
    const bool ordinary = r.n > 0 && is_finite(r.m);
    const float L = log1p_of(r.S + (r.n - 1));
    const float loss = ordinary ? or_left((r.weights * L + r.gaps * a.inv_T) * a.unit) : limits<float>::nan();
    if (segments.leads()) a.loss[row] = loss;
  }
}
