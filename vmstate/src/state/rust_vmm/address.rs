//! `vm_memory::GuestAddress`: a physical address of the guest, as a `u64`.

use vm_memory::GuestAddress;

use crate::state::numbers::represented;

represented! {
    /// Any address is taken: what is there, the device that uses it has to check anyway.
    GuestAddress as u64, u64::KIND, |address| Ok(address.0), |sent| Ok(Self(sent));
}
