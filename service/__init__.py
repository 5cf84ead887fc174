"""Everything that touches the world: HTTP, processes, files, clocks, logs. The numerics are `import engine`, and nothing deeper."""
