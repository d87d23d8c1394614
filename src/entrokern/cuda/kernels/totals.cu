// From one number per row to one number: weighted sums in float64, what a mean divides by, and its share in gradients.

struct Arguments {
  Operand losses, sample_weight, labels, class_weight, counts;  // no data: not there
  double *partial;  // two sums of each block: of losses, and of weights (or a BlockSum of each)
  double *total;    // what the mean's gradient is multiplied by, as float64 …
  float *total32;   // … and as float32
  void *result, *factors;  // of the dtypes given
  i64 n, blocks, ignore_index, k;
  int has_ignored, mean, on_empty_zero, result_dtype, factors_dtype, twofold;
};

struct BlockSum {  // of binary.cu: the same two sums, each a number and its rounding
  float loss, loss_low, weight, weight_low;
};
D double whole(float high, float low) { return is_finite(high) ? (double)high + low : high; }

enum { ROWS = 1 << 14 };  // of a block

D bool is_ignored(const Arguments &a, i64 row) {
  if (a.counts.data && load_number(a.counts, row) == 0) return true;
  return a.has_ignored && a.labels.data && load_integer(a.labels, row_start(a.labels, row)) == a.ignore_index;
}

D double weight_of(const Arguments &a, i64 row) {
  if (is_ignored(a, row)) return 0;
  return a.sample_weight.data ? load_number(a.sample_weight, row_start(a.sample_weight, row)) : 1.0;
}

D double class_weight_of(const Arguments &a, i64 row) {
  if (!a.class_weight.data || !a.labels.data) return 1;
  const i64 label = load_integer(a.labels, row_start(a.labels, row));
  if (label < 0 || label >= a.k) return limits<double>::nan();
  return load_number(a.class_weight, row_start(a.class_weight, label));
}

// What is asked for of both sums
D void finish(const Arguments &a, double total, double weight) {
  if (a.total) *a.total = weight == 0 ? 0.0 : 1 / weight;  // nothing counts: no gradient
  if (a.total32) *a.total32 = (float)(weight == 0 ? 0.0 : 1 / weight);
  if (a.result) {
    double value = total;
    if (a.mean) value = weight != 0 ? total / weight : a.on_empty_zero ? 0.0 : limits<double>::nan();
    if (a.result_dtype == FLOAT64) {
      *(double *)a.result = value;
    } else {
      *(float *)a.result = (float)value;
    }
  }
}

// Σ s·loss and Σ s·w_y of a block's rows; if there is no other block, that is all
D void sum_rows(const Arguments &a) {
  const Team block = {BLOCK, (int)threadIdx.x};
  Sums<2> sums;
  sums.begin();
  const i64 low = (i64)blockIdx.x * ROWS, high = low + ROWS < a.n ? low + ROWS : a.n;
  for (i64 row = low + threadIdx.x; row < high; row += BLOCK) {
    const double s = weight_of(a, row);
    if (s == 0) continue;
    if (a.losses.data) sums.add(0, s * load_number(a.losses, row));
    sums.add(1, s * class_weight_of(a, row));
  }
  sums = joined_by(block, sums);
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1) {
    finish(a, sums.value(0), sums.value(1));
  } else {
    a.partial[2 * blockIdx.x] = sums.value(0);
    a.partial[2 * blockIdx.x + 1] = sums.value(1);
  }
}

// One block: the sums of all blocks, and what is asked for of them
D void sum_blocks(const Arguments &a) {
  const Team block = {BLOCK, (int)threadIdx.x};
  Sums<2> sums;
  sums.begin();
  for (i64 i = threadIdx.x; i < a.blocks; i += BLOCK) {
    if (a.twofold) {
      const BlockSum b = ((const BlockSum *)a.partial)[i];
      sums.add(0, whole(b.loss, b.loss_low));
      sums.add(1, whole(b.weight, b.weight_low));
    } else {
      sums.add(0, a.partial[2 * i]);
      sums.add(1, a.partial[2 * i + 1]);
    }
  }
  sums = joined_by(block, sums);
  if (threadIdx.x == 0) finish(a, sums.value(0), sums.value(1));
}

// What the gradients of rows are multiplied by: the weights, and a mean's share
D void factors_of_rows(const Arguments &a) {
  const double share = a.total ? *a.total : 1.0;
  for (i64 row = (i64)blockIdx.x * BLOCK + threadIdx.x; row < a.n; row += (i64)gridDim.x * BLOCK) {
    const double f = weight_of(a, row) * share;
    if (a.factors_dtype == FLOAT64) {
      ((double *)a.factors)[row] = f;
    } else {
      // 0 says that a row does not count: a weight that is only very small must not become one.
      ((float *)a.factors)[row] = f != 0 && fabs(f) < 1e-37 ? (float)copysign(1e-37, f) : (float)f;
    }
  }
}

// Losses of rows, weighted where they lie
D void weigh_rows(const Arguments &a) {
  for (i64 row = (i64)blockIdx.x * BLOCK + threadIdx.x; row < a.n; row += (i64)gridDim.x * BLOCK) {
    const double s = weight_of(a, row);
    store_number(a.losses, row, s == 0 ? 0.0 : s * load_number(a.losses, row));
  }
}
