// Rows of probabilities as they are: entropy of one, KL and JS divergence of two of one dtype, in float32 and one read.
//
// The terms are made for what is ordinary: numbers from 0 on, with q > 0 wherever p > 0. All else comes out as NaN, for
// the careful kernels.

struct Arguments {
  Operand x, y;
  float *loss;
  void *records;  // of segments
  i64 n, k;
  int team, mode, parts;
  float unit;
};

// p·log(p/q) - (p-q), for p and q from 2^-126 on. With r = q·2^n, a power of 2 that brings it within half of p, that is
//   (p·n·log 2 - (r-q)) + (p·log(p/r) - (p-r)):
// the first vanishes where q is near p, and its difference is exact where much of it cancels; the second is
// (p-r)·s·(1 + s·(1+s)·tail(s²)) with s = (p-r)/(p+r), where nothing cancels.
D float kl_term(float p, float q) {
  const int steps = ((int)(__float_as_uint(p) - __float_as_uint(q)) + (1 << 22)) & 0xff800000;  // n, where exponents have it
  const float r = __uint_as_float(__float_as_uint(q) + steps), d = p - r, s = d * reciprocal(p + r);
  const float c[] = {ATANH_FIFTH_F32};
  const float close = d * s * fmaf(fmaf(s, s, s), polynomial(s * s, c), 1.0f);
  return fmaf(p, (float)steps * 8.26295836e-8f, q - r) + close;  // 2^-23·log 2
}

template <int QUANTITY> struct Gathered {
  enum { TERMS, EXCESS };
  TwofoldSums<2> sums;
  bool strange;
  unsigned signs;  // those of all numbers, where the highest bit is
  float lost;      // Σ p where there is no q

  D void begin() {
    sums.begin();
    strange = false;
    signs = 0;
    lost = 0;
  }
  D bool ordinary() const { return !strange && (int)signs >= 0 && lost == 0; }

  template <int W, int N> D void operator()(const Places<W> &, float (&p)[N], float (&q)[N]) {
    float terms = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      if (QUANTITY == KL) {
        const float smallest = limits<float>::smallest();
        // A NaN, and infinity, will be seen in the excess.
        signs |= __float_as_uint(p[j]) | __float_as_uint(q[j]);
        if (q[j] < smallest) lost += p[j];
        terms += kl_term(larger(p[j], smallest), larger(q[j], smallest));
        sums.sum[EXCESS].add(p[j] - q[j]);
        continue;
      }
      strange = strange || !(p[j] >= 0) || !(q[j] >= 0);
      terms += QUANTITY == JS ? js_term(p[j], q[j], p[j] - q[j]) : p[j] == 0 ? 0.0f : -p[j] * logf(p[j]);
    }
    sums.sum[TERMS].add(terms);
  }

  template <int W, int N> D void operator()(const Places<W> &places, float (&p)[N]) {
    float zero[N];
#pragma unroll
    for (int j = 0; j < N; ++j) zero[j] = 0;
    (*this)(places, p, zero);
  }
};

template <class T, int QUANTITY> D void table_rows(const Arguments &a) {
  Segments<1, false, Arguments> segments(a);
  for (const auto turn : segments.rows()) {
    segments.turn_to(turn);
    const Team &team = segments.team;
    const i64 row = segments.row;
    const T *x = (const T *)a.x.data + row_start(a.x, row);
    const auto sums_of = [&](i64 low, i64 high) {
      Gathered<QUANTITY> part;
      part.begin();
      if (QUANTITY != ENTROPY) {
        const T *y = (const T *)a.y.data + row_start(a.y, row);
        sweep_pairs(a.x, x, a.y, y, low, high, a.k, team, 0, 0, part);
      } else if (in_line<T>(a.x, a.k)) {
        sweep_line(x, low, high, team, part);
      } else {
        // Beyond the last class there are zeros: -inf would be strange.
        for (i64 c = low + team.lane; c < high; c += team.size) {
          float one[1] = {widened(x[c * a.x.class_stride])};
          part(Places<1>{c, 0}, one);
        }
      }
      if (!part.ordinary()) part.sums.sum[0].high = limits<float>::nan();
      return part.sums;
    };
    TwofoldSums<2> sums;
    if (!segments.gather<0>(sums, sums_of)) continue;
    Twofold total = sums.sum[0];
    if (QUANTITY == KL) {
      total.add(sums.sum[1].high);
      total.low += sums.sum[1].low;
    }
    const float loss = total.value();
    // So small that subnormal numbers, which the terms know little of, might matter: for the careful kernels too. (Each
    // may have cost 2^-126·log(2^126).)
    const bool doubtful = loss != 0 && magnitude(loss) < 8.47032947e-22f;
    if (segments.leads()) a.loss[row] = doubtful ? limits<float>::nan() : or_left(loss * a.unit);
  }
}
