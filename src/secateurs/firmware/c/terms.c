/* Places in the array `by` of a sum of two arrays: what a term is multiplied by and moved by before its multiplier, and its shift to the
   right. */
enum {
    SEC_ADD_LEFT, SEC_ADD_OFFSET, SEC_ADD_MULTIPLIER, SEC_ADD_SHIFT, SEC_ADD_LEFT_OTHER, SEC_ADD_OFFSET_OTHER, SEC_ADD_MULTIPLIER_OTHER,
    SEC_ADD_SHIFT_OTHER, SEC_ADD_MULTIPLIER_OUT, SEC_ADD_SHIFT_OUT, SEC_ADD_ZERO_OUT, SEC_ADD_LOW, SEC_ADD_HIGH, SEC_ADD_SIGN
};
