//! NVMe/TCP: a hostile host against our target, a hostile target against our initiator.

mod authentication;
mod host;
mod initiator;
mod model;
mod target;
mod wire;

pub use authentication::authentication;
pub use initiator::initiator;
pub use target::target;
