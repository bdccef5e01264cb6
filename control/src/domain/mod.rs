//! The pure half: `decide` and `evolve` over the state that replaying the log gives.
