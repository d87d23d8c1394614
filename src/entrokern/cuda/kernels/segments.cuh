// Long rows by their segments: what is gathered of each is joined in order, so a row has the same bits whoever did it.
//
// The blocks of a cluster, or one block, take the segments of a row in turn, and have all records in shared memory, each
// in its own. (The more blocks, the fewer rows are under way at a time: few enough to stay in cache until they are read
// again.) Or, of few long rows, every block has one segment: then each launch gathers one kind of record, for those after
// it to find in memory. A row that is not long has one segment and one team.

enum { WHOLE_ROWS, PARTS };  // the mode of a launch; from PARTS on, which records it gathers: the first, the second …
enum { RECORD_BYTES = 80 };  // of memory for a segment's record, at least

// The segments that a team does of a row: each `step`-th, from `first` on.
struct Share {
  int first, end, step;

  D int last() const { return end - 1 - (end - 1 - first) % step; }
};

// GATHERS sweeps give records of a row, and then one may write. Of Arguments it takes n, k, mode, parts (of a row), and
// records, where those are in memory.
template <int GATHERS, bool IN_CLUSTERS, class Arguments> struct Segments {
  const Arguments &a;
  Team team;
  i64 row;  // that is under way
  int part;  // of it; 0 of whole rows; less where the team has no row of its own, and does another's
  int side;  // of shared memory, that the row's first records go to

  D Segments(const Arguments &a) : a(a), side(0) {
    if (IN_CLUSTERS && cluster_size() > 1) cluster_barrier();  // all have begun
  }

  D Rows rows() const { return Rows(a.n * a.parts, a.team, IN_CLUSTERS); }

  D void turn_to(const Rows::Row &of) {
    team = of.team;
    row = a.parts > 1 ? of.row / a.parts : of.row;
    part = of.real ? (int)(of.row - row * a.parts) : -1;
    if (GATHERS % 2 != 0) side = 1 - side;
  }

  D bool real() const { return part >= 0; }

  // Whether this thread is the one that writes what there is one of for a row.
  D bool leads() const { return part == 0 && team.lane == 0 && (!IN_CLUSTERS || cluster_rank() == 0); }

  D int blocks() const { return IN_CLUSTERS ? cluster_size() : 1; }  // that share a row
  D int count() const { return (int)((a.k + SEGMENT - 1) / SEGMENT); }

  // Worked out anew for each sweep, it takes no registers beyond it.
  D Share share() const {
    if (a.mode != WHOLE_ROWS) return {part, part + 1, 1};
    return {IN_CLUSTERS ? cluster_rank() : 0, count(), blocks()};
  }

  // Visits the segments of the row's sweep SWEEP: `visit(low, high, segment)`. Every other sweep
  // goes backwards: what was read last is still in cache.
  template <int SWEEP, class Visit> D void each(Visit visit) const {
    const Share mine = share();
    if (SWEEP % 2 == 0) {
      for (int s = mine.first; s < mine.end; s += mine.step) {
        visit((i64)s * SEGMENT, segment_end((i64)s * SEGMENT, a.k), s);
      }
    } else {
      for (int s = mine.last(); s >= mine.first; s -= mine.step) {
        visit((i64)s * SEGMENT, segment_end((i64)s * SEGMENT, a.k), s);
      }
    }
  }

  // The last sweep.
  template <class Visit> D void write(Visit visit) const { each<GATHERS>(visit); }

  // Joins the records of a row that its sweep SWEEP gives: `of_segment(low, high)` is what this thread has seen of one.
  // False where the launch ends with it.
  template <int SWEEP, class Record, class OfSegment> D bool gather(Record &all, OfSegment of_segment) {
    static_assert(sizeof(Record) <= RECORD_BYTES, "Python has to allocate more");
    const bool shared = a.mode == WHOLE_ROWS && count() > 1;
    Record *records = shared ? on_side<Record>((side + SWEEP) % 2) : in_memory<Record>(SWEEP);
    if (a.mode == WHOLE_ROWS || a.mode == PARTS + SWEEP) {
      each<SWEEP>([&](i64 low, i64 high, int segment) {
        all = joined_by(team, of_segment(low, high));
        if (shared && team.lane < blocks()) in_block(records, team.lane)[segment] = all;
      });
    }
    if (a.mode == PARTS + SWEEP) {
      if (real() && team.lane == 0) records[part] = all;
      return false;
    }
    if (shared) cluster_barrier();  // all records are there
    if (shared || a.mode != WHOLE_ROWS) all = in_order<SWEEP>(records);
    return true;
  }

 private:
  template <class Record> D Record *in_memory(int sweep) const {
    return (Record *)((char *)a.records + sweep * a.n * a.parts * RECORD_BYTES) + row * a.parts;
  }

  // The sides alternate: while one is written, others may still read what was there before.
  template <class Record> D Record *on_side(int which) const {
    DYNAMIC_SHARED(dynamic);
    return (Record *)((char *)dynamic + which * (count() * RECORD_BYTES));
  }

  // In the order of the sweep.
  template <int SWEEP, class Record> D Record in_order(const Record *records) const {
    const int n = count();
    Record all = records[SWEEP % 2 == 0 ? 0 : n - 1];
#pragma unroll 1
    for (int i = 1; i < n; ++i) all.join(records[SWEEP % 2 == 0 ? i : n - 1 - i]);
    return all;
  }
};
