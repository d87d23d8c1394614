// Rows of probabilities as they are: entropy of one, KL and JS divergence of two of one dtype, in float32 and one read.
//
// The terms are made for what is ordinary: numbers from 0 on, with q > 0 wherever p > 0. All else comes out as NaN, for
// the careful kernels.

struct Arguments {
  Operand x, y;
  float *loss;
  i64 n, k;
  int team;
  float unit;
};

enum { ENTROPY, KL, JS };  // JS of equal weights

D int exponent_steps(float p, float q) { return (int)(__float_as_uint(p) - __float_as_uint(q) + (1u << 22)) >> 23; }
D float halved(float p, int n) { return __uint_as_float(__float_as_uint(p) - ((unsigned)n << 23)); }
D float quotient(float difference, float total) { return difference * reciprocal(larger(total, 1.17549435e-38f)); }

// p·log(p/q) - (p-q), with p - q as it is rounded: exact where the two are within a factor of 2. There the term is
// (p-q)·s·(1 + s·(1+s)·tail(s²)) with s = (p-q)/(p+q), and nothing cancels; elsewhere p is halved until it is near.
D float kl_term(float p, float q) {
  const bool near = p < q + q && q < p + p;
  const int n = near ? 0 : exponent_steps(p, q);
  const float moved = halved(p, n), s = quotient(moved - q, moved + q);
  const float c[] = {ATANH_TAIL_F32};
  const float tail = polynomial(s * s, c), difference = p - q;
  const float close = difference * s * fmaf(fmaf(s, s, s), tail, 1.0f);
  // The largest part goes in last, unrounded.
  const float rest = p * fmaf(s + s, fmaf(s * s, tail, 1.0f), (float)n * -2.12194440e-4f);
  return near ? close : fmaf(p, (float)n * 0.693359375f, rest - difference);
}

// (p+q)/4·[(1+t)·log(1+t) + (1-t)·log(1-t)] with t = |p-q|/(p+q): by its series where t is small and the logarithms cancel
D float js_term(float p, float q) {
  const float distance = magnitude(p - q), both = p + q, t = quotient(distance, both), u = t * t;
  const float c[] = {EVEN_JS};
  const float near = distance * t * fmaf(u, polynomial(u, c), 1.0f) * 0.25f;
  // t may round to 1: then hardly anything is left of the smaller.
  const float far = (larger(p, q) * log1pf(t) + smaller(p, q) * logf(larger(1 - t, 1.4901161e-8f))) * 0.5f;
  return t <= 0.7f ? near : far;
}

template <int QUANTITY> struct Gathered {
  enum { TERMS, EXCESS };
  TwofoldSums<2> sums;
  bool strange;

  template <int W, int N> D void operator()(const Places<W> &, float (&p)[N], float (&q)[N]) {
    float terms = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      strange = strange || !(p[j] >= 0) || !(q[j] >= 0);
      if (QUANTITY == ENTROPY) {
        terms += p[j] == 0 ? 0.0f : -p[j] * logf(p[j]);
      } else if (QUANTITY == KL) {
        strange = strange || (p[j] > 0 && q[j] < 1.17549435e-38f);
        terms += kl_term(p[j], q[j]);
        sums.sum[EXCESS].add(p[j] - q[j]);
      } else {
        terms += js_term(p[j], q[j]);
      }
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
  for (const auto [team, row, real] : Rows(a.n, a.team)) {
    const T *x = (const T *)a.x.data + row_start(a.x, row);
    Gathered<QUANTITY> gathered;
    gathered.sums.begin();
    gathered.strange = false;
    if (QUANTITY == ENTROPY) {
      if (in_line<T>(a.x, a.k)) {
        sweep_line(x, 0, a.k, team, gathered);
      } else {
        // Beyond the last class there are zeros: -inf would be strange.
        for (i64 c = team.lane; c < a.k; c += team.size) {
          float one[1] = {widened(x[c * a.x.class_stride])};
          gathered(Places<1>{c, 0}, one);
        }
      }
    } else {
      const T *y = (const T *)a.y.data + row_start(a.y, row);
      sweep_pairs(a.x, x, a.y, y, 0, a.k, a.k, team, 0, 0, gathered);
    }
    if (gathered.strange) gathered.sums.sum[0].high = limits<float>::nan();
    const TwofoldSums<2> sums = joined_by(team, gathered.sums);
    Twofold total = sums.sum[0];
    if (QUANTITY == KL) {
      total.add(sums.sum[1].high);
      total.low += sums.sum[1].low;
    }
    const float loss = total.value();
    // So small that subnormal numbers, which the terms know little of, might matter: for the careful kernels too.
    const bool doubtful = loss != 0 && magnitude(loss) < 8.271806e-25f;
    if (real && team.lane == 0) a.loss[row] = doubtful ? limits<float>::nan() : or_left(loss * a.unit);
  }
}
