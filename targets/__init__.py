"""One TOML per device; `rt3_tvm.device` reads them."""
