// What kernels of two operands are told whose first is logits: dense cross-entropy, and KL of two softmaxes.

struct Arguments {
  Operand x, y, grad;
  const float *row_factors, *map_scale;  // null: none
  float *loss;
  void *records;  // of segments
  i64 n, k;
  int team, mode, parts;
  float inv_T, scale, unit, factor;  // scale = log2(e)/T, factor = unit·map_scale/T
};

// What a row's gradient is multiplied by; 0: the row does not count.
D float factor_of(const Arguments &a, i64 row) {
  float f = a.factor;
  if (a.map_scale) f *= *a.map_scale;
  return a.row_factors ? f * a.row_factors[row] : f;
}

template <class T> D void fill_zero(const MapWriter<T> &out, i64 low, i64 high, const Team &team) {
  for (i64 c = low + team.lane; c < high; c += team.size) narrow(0.0f, out.row[c * out.stride]);
}
