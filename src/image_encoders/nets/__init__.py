"""The nets: nn.Modules of one tensor in, one tensor (B, dim) out. No names, no addresses, no files."""
