/* Of a window of `size` places, `step` apart from `start` on, the first one inside of `limit` places and the one after the last. */
typedef struct {
    int first, end;
} sec_range;

static inline sec_range sec_inside(int start, int size, int step, int limit) {
    sec_range found;
    found.first = start < 0 ? (step - 1 - start) / step : 0;
    found.end = start < limit ? (limit - start + step - 1) / step : 0;
    found.end = found.end < size ? found.end : size;
    found.first = found.first < found.end ? found.first : found.end;
    return found;
}

/* Places in the array `shape` of a pool. */
enum { SEC_POOL_H, SEC_POOL_W, SEC_POOL_STRIDE_H, SEC_POOL_STRIDE_W, SEC_POOL_DILATION_H, SEC_POOL_DILATION_W, SEC_POOL_CHANNELS, SEC_POOL_ZERO, SEC_POOL_COUNTS };
