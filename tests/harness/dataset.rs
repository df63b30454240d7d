//! A dataset as anyone may read it: the chain's data slices, by Arrow's own Parquet reader and not by our code.
