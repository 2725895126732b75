//! `vm_memory::GuestAddress`: a physical address of the guest, as a `u64`.

use vm_memory::GuestAddress;

use crate::state::numbers::represented;

represented! {
    /// A load takes any address: the device that uses it has to check it anyway.
    GuestAddress as u64, u64::KIND, |address| Ok(address.0), |sent| Ok(Self(sent));
}
