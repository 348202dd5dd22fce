//! The virtual machine's two sides: `machine` boots it and hears its verdict, `suite` is what runs inside.

pub mod machine;
pub mod measured;
pub mod suite;
