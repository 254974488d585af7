// An entry of the lane table: the gradient of one tenant's B's, F32, laid out as the B's are; rank 0: not set.
struct Lane {
    float* grad;
    ll size, rank; // elements
    double scaling; // alpha/rank
};

// SetLane: table[lane] = entry, in the stream's order.
struct SetLaneArgs {
    Lane* table; ll lane;
    Lane entry;
};
extern "C" __global__ void set_lane(const __grid_constant__ SetLaneArgs a) {
    wait_predecessor();
    allow_successor();
    a.table[a.lane] = a.entry;
}
