// The record of a row of logits, gathered in one read and joined from parts.
//
// A record is (m, S, n): the largest logit, the sum of e^(z - m) over the logits below it, and how many equal it. The
// largest is counted and not added, so that a row whose winner leads by far keeps the digits of what is left.

// e^z by z - m, for the numbers of a row
template <class C> struct Scaling {
  C scale, cap, inv_cap;

  // What the loss is of, but for the temperature: c·tanh(x/c), where -inf stays what it is.
  D C shown(C x) const { return cap == 0 || x == -limits<C>::inf() ? x : product(cap, tanh_of(x * inv_cap)); }

  // Beyond 19 caps all of float64 is the cap itself: such logits are equal to each other.
  D C limited(C x) const {
    const C most = cap * (C)19.0625;
    if (cap == 0 || x == -limits<C>::inf()) return x;
    return x > most ? most : x < -most ? -most : x;
  }
};

template <class C> struct Record {
  C m, top;  // the largest logit, and what is shown of it
  C S, n;    // Σ e^(z - top) over the logits below m; how many equal it
  // Of a full record only: Σ e^t·t with t = log2 e^(z - top); Σ w·(top - z) and Σ w; where the largest is; how many
  // logits are larger than the label's.
  C spread, gaps, weights;
  i64 at;
  int above;
};

// How much of a row is gathered: its record; entropy, largest and rank beside; all that options may ask for.
enum { PLAIN, FULL, ANY };

template <int LEVEL, class C> struct Joined {
  Record<C> r;
  C scale;

  D void join(const Joined &other) {
    const bool flip = other.r.m > r.m, tie = other.r.m == r.m;
    const Record<C> high = flip ? other.r : r, low = flip ? r : other.r;
    // -inf - finite, and inf - inf, are floored: the sums beside them are 0, or NaN, which stays.
    const C d = larger((low.top - high.top) * scale, limits<C>::floor()), f = tie ? (C)1 : exp2_of(d);
    const C more = low.S + (tie ? (C)0 : low.n);
    r.m = high.m;
    r.top = high.top;
    r.S = high.S + f * more;
    r.n = high.n + (tie ? low.n : (C)0);
    if (LEVEL >= FULL) {
      r.spread = high.spread + f * (low.spread + (tie ? (C)0 : d * more));
      r.at = tie && low.n != 0 && (high.n == 0 || low.at < high.at) ? low.at : high.at;
      r.above = high.above + low.above;
    }
    if (LEVEL == ANY) {
      const C moved = tie || low.weights == 0 ? (C)0 : low.weights * (high.top - low.top);
      r.gaps = high.gaps + (low.gaps + moved);
      r.weights = high.weights + low.weights;
    }
  }

  D Joined shuffled(int apart) const {
    Joined o = *this;
    o.r.m = from_lane(r.m, apart);
    o.r.top = LEVEL == ANY ? from_lane(r.top, apart) : o.r.m;
    o.r.S = from_lane(r.S, apart);
    o.r.n = from_lane(r.n, apart);
    if (LEVEL >= FULL) {
      o.r.spread = from_lane(r.spread, apart);
      o.r.at = from_lane(r.at, apart);
      o.r.above = from_lane(r.above, apart);
    }
    if (LEVEL == ANY) {
      o.r.gaps = from_lane(r.gaps, apart);
      o.r.weights = from_lane(r.weights, apart);
    }
    return o;
  }
};

// Adds logits to a record as they come: whenever a larger one turns up, the sums so far are scaled down.
template <int LEVEL, class C> struct Gather {
  Record<C> r;
  Scaling<C> scaling;
  const C *class_weight;
  bool smoothed;
  C y;  // the label's logit
  i64 k;

  D void begin() {
    r.m = r.top = limits<C>::lowest();  // and not -inf, which no number can be subtracted from
    r.S = r.n = r.spread = r.gaps = r.weights = 0;
    r.at = 0;
    r.above = 0;
  }

  D C shown(C x) const { return LEVEL == ANY ? scaling.shown(x) : x; }

  D void raise(C m) {
    const C top = shown(m), d = (r.top - top) * scaling.scale, f = exp2_of(d), Z = r.S + r.n;
    if (LEVEL >= FULL) r.spread = f * (r.spread + larger(d, limits<C>::floor()) * Z);
    if (LEVEL == ANY && r.weights != 0) r.gaps += r.weights * (top - r.top);
    r.S = f * Z;
    r.n = 0;
    r.m = m;
    r.top = top;
  }

  template <int W, int N> D void operator()(const Places<W> &places, C (&v)[N]) {
    if (LEVEL == ANY) {
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = scaling.limited(v[j]);
    }
    C m = v[0];
#pragma unroll
    for (int j = 1; j < N; ++j) m = larger(m, v[j]);
    // The lowest number of all is no larger than what a record begins with, but it is a logit.
    if (m > r.m || (LEVEL >= FULL && r.n == 0 && m == r.m)) {
      raise(m);
      if (LEVEL >= FULL) {
#pragma unroll
        for (int j = N - 1; j >= 0; --j) r.at = v[j] == m ? places.at(j) : r.at;
      }
    }
    C sum = 0, n = 0, spread = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      // Subtract first: v·scale - m·scale would cancel at a large common offset.
      const C t = (shown(v[j]) - r.top) * scaling.scale, e = exp2_of(t);
      const bool below = v[j] != r.m;  // NaN too
      sum += below ? e : (C)0;
      n += below ? (C)0 : (C)1;
      if (LEVEL >= FULL) {
        spread += e * larger(t, limits<C>::floor());  // the largest itself adds 0
        r.above += v[j] > y;
      }
    }
    r.S += sum;
    r.n += n;
    if (LEVEL >= FULL) r.spread += spread;
    if (LEVEL == ANY && smoothed) add_gaps(places, v);
  }

  // Σ w·(top - z): all terms are positive; a weight of 0 leaves its class out, infinite or not.
  template <int W, int N> D void add_gaps(const Places<W> &places, C (&v)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const i64 at = places.at(j);
      if (at < k) {
        const C w = class_weight ? class_weight[at] : (C)1;
        r.gaps += w == 0 && v[j] == v[j] ? (C)0 : w * (r.top - scaling.shown(v[j]));
        r.weights += w;
      }
    }
  }
};
