//! What both ends of an end-to-end test share: data that can be checked wherever it arrives, and a
//! protocol to send it through any kind of stream; and load that is measured.

pub mod load;
pub mod pattern;
pub mod stream;
