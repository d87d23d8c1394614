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

  // The slope of z, which is shown of x: 1 - tanh², near the cap as 4u/(1 + u)², of which nothing cancels.
  D C slope(C x, C z) const {
    if (cap == 0) return 1;
    const C t = z * inv_cap, u = exp2_of(magnitude(x) * (inv_cap * (C)-2.8853900817779268)), r = reciprocal(1 + u);
    return magnitude(t) < (C)0.7 ? 1 - t * t : 4 * u * (r * r);
  }
};

template <class C> struct Record {
  C m, top;  // the largest logit, and what is shown of it
  C S, n;    // Σ e^(z - top) over the logits below m; how many equal it (with options: see below)
  // With more: Σ e^t·t with t = log2 e^(z - top); Σ w·(top - z) and Σ w; where the largest is; how many logits are
  // larger than the label's.
  C spread, gaps, weights;
  i64 at;
  int above;
};

// How much of a row is gathered: its record; entropy, largest and rank beside; what options may ask for; both.
enum { PLAIN, FULL, OPTIONS, ANY = FULL | OPTIONS };

// With options e^z, of t = log2 of it, is kept by whether it is near 1: then 1 is counted, in n, and the rest, e^z - 1, is what S sums. Z = S + n
// and S + n - 1 stay what they were, but of a gradient pull·p - b, of which next to nothing is left where a row's logits are
// nearly equal, the digits are here: what cancels are the counts, and those are exact. float64 has digits to spare, and
// counts only what is equal to the largest.
D float excess_or_exp(float t, bool &counted) {
  counted = t >= -1.0f;
  return counted ? excess_of(t) : exp2_of(t);
}
D double excess_or_exp(double t, bool &counted) {
  counted = t == 0;
  return counted ? 0.0 : exp2_of(t);
}

// What a record adds to S and n of one whose largest logit is larger, by t = log2 of its own e^z there: it times f = 2^t.
template <class C> struct Lowered {
  C S, n, f;
};
template <class C> D Lowered<C> lowered(const Record<C> &r, C t, bool tie) {
  const C f = tie ? (C)1 : exp2_of(t);
  return {f * (r.S + (tie ? (C)0 : r.n)), tie ? r.n : (C)0, f};
}
// Its count is kept as long as that is not mostly what the sum takes back.
D Lowered<float> lowered_by_count(const Record<float> &r, float t) {
  const float Z = r.S + r.n, x = excess_of(t), S = fmaf(Z, x, r.S);
  if (t >= -1.0f && r.n + S >= 0.5f * r.n) return {S, r.n, 1 + x};
  return lowered(r, t, false);
}
D Lowered<double> lowered_by_count(const Record<double> &r, double t) { return lowered(r, t, t == 0); }

template <int LEVEL, class C> struct Joined {
  Record<C> r;
  C scale;

  D void join(const Joined &other) {
    const bool flip = other.r.m > r.m, tie = other.r.m == r.m;
    const Record<C> high = flip ? other.r : r, low = flip ? r : other.r;
    // -inf - finite, and inf - inf, are floored: the sums beside them are 0, or NaN, which stays.
    const C d = larger((low.top - high.top) * scale, limits<C>::floor());
    const Lowered<C> more = (LEVEL & OPTIONS) ? lowered_by_count(low, d) : lowered(low, d, tie);
    r.m = high.m;
    r.top = high.top;
    r.S = high.S + more.S;
    r.n = high.n + more.n;
    if (LEVEL & FULL) {
      r.spread = high.spread + more.f * (low.spread + (tie ? (C)0 : d * (low.S + low.n)));
      r.at = tie && low.n != 0 && (high.n == 0 || low.at < high.at) ? low.at : high.at;
      r.above = high.above + low.above;
    }
    if (LEVEL & OPTIONS) {
      const C moved = tie || low.weights == 0 ? (C)0 : low.weights * (high.top - low.top);
      r.gaps = high.gaps + (low.gaps + moved);
      r.weights = high.weights + low.weights;
    }
  }

  D Joined shuffled(int apart) const {
    Joined o = *this;
    o.r.m = from_lane(r.m, apart);
    o.r.top = (LEVEL & OPTIONS) ? from_lane(r.top, apart) : o.r.m;
    o.r.S = from_lane(r.S, apart);
    o.r.n = from_lane(r.n, apart);
    if (LEVEL & FULL) {
      o.r.spread = from_lane(r.spread, apart);
      o.r.at = from_lane(r.at, apart);
      o.r.above = from_lane(r.above, apart);
    }
    if (LEVEL & OPTIONS) {
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

  D C shown(C x) const { return (LEVEL & OPTIONS) ? scaling.shown(x) : x; }

  D void raise(C m) {
    const C top = shown(m), d = (r.top - top) * scaling.scale;
    const Lowered<C> kept = (LEVEL & OPTIONS) ? lowered_by_count(r, d) : lowered(r, d, false);
    if (LEVEL & FULL) r.spread = kept.f * (r.spread + larger(d, limits<C>::floor()) * (r.S + r.n));
    if ((LEVEL & OPTIONS) && r.weights != 0) r.gaps += r.weights * (top - r.top);
    r.S = kept.S;
    r.n = kept.n;
    r.m = m;
    r.top = top;
  }

  template <int W, int N> D void operator()(const Places<W> &places, C (&v)[N]) {
    if (LEVEL & OPTIONS) {
#pragma unroll
      for (int j = 0; j < N; ++j) v[j] = scaling.limited(v[j]);
    }
    C m = v[0];
#pragma unroll
    for (int j = 1; j < N; ++j) m = larger(m, v[j]);
    // The lowest number of all is no larger than what a record begins with, but it is a logit.
    if (m > r.m || ((LEVEL & FULL) && r.n == 0 && m == r.m)) {
      raise(m);
      if (LEVEL & FULL) {
#pragma unroll
        for (int j = N - 1; j >= 0; --j) r.at = v[j] == m ? places.at(j) : r.at;
      }
    }
    C sum = 0, n = 0, spread = 0, d[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
      // Subtract first: v·scale - m·scale would cancel at a large common offset.
      d[j] = shown(v[j]) - r.top;
      const C t = d[j] * scaling.scale;
      bool counted = v[j] == r.m;  // not of NaN
      C e;
      if (LEVEL & OPTIONS) {
        const C x = excess_or_exp(counted ? (C)0 : t, counted);
        sum += x;
        e = counted ? 1 + x : x;
      } else {
        e = exp2_of(t);
        sum += counted ? (C)0 : e;
      }
      n += counted ? (C)1 : (C)0;
      if (LEVEL & FULL) {
        spread += e * larger(t, limits<C>::floor());  // the largest itself adds 0
        r.above += v[j] > y;
      }
    }
    r.S += sum;
    r.n += n;
    if (LEVEL & FULL) r.spread += spread;
    if ((LEVEL & OPTIONS) && smoothed) add_gaps(places, v, d);
  }

  // Σ w·(top - z): all terms are positive; a weight of 0 leaves its class out, infinite or not.
  template <int W, int N> D void add_gaps(const Places<W> &places, const C (&v)[N], const C (&d)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const i64 at = places.at(j);
      if (at < k) {
        const C w = class_weight ? class_weight[at] : (C)1;
        r.gaps -= w == 0 && v[j] == v[j] ? (C)0 : w * d[j];
        r.weights += w;
      }
    }
  }
};
