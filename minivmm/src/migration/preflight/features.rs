//! Compares the features that a guest has negotiated for its network cards with those that the networks here have.

use virtio_bindings::virtio_net::*;

use super::Difference;

/// Features that not every network has, with the names of QEMU's card properties.
const NAMES: [(u32, &str); 13] = [
    (VIRTIO_NET_F_CSUM, "csum"),
    (VIRTIO_NET_F_GUEST_CSUM, "guest_csum"),
    (VIRTIO_NET_F_GUEST_TSO4, "guest_tso4"),
    (VIRTIO_NET_F_GUEST_TSO6, "guest_tso6"),
    (VIRTIO_NET_F_GUEST_ECN, "guest_ecn"),
    (VIRTIO_NET_F_GUEST_UFO, "guest_ufo"),
    (VIRTIO_NET_F_HOST_TSO4, "host_tso4"),
    (VIRTIO_NET_F_HOST_TSO6, "host_tso6"),
    (VIRTIO_NET_F_HOST_ECN, "host_ecn"),
    (VIRTIO_NET_F_HOST_UFO, "host_ufo"),
    (VIRTIO_NET_F_GUEST_USO4, "guest_uso4"),
    (VIRTIO_NET_F_GUEST_USO6, "guest_uso6"),
    (VIRTIO_NET_F_HOST_USO, "host_uso"),
];

/// Returns a difference for each card for which the guest has `agreed` on features that are not `offered` here: a driver keeps
/// its features until it resets the card (virtio 1.2 §2.2). Features that only this machine offers are no difference.
pub fn lacking(agreed: &[u64], offered: &[u64]) -> Vec<Difference> {
    let cards = (1..).zip(agreed.iter().zip(offered)).map(|(number, (agreed, offered))| (number, agreed & !offered));
    let lacking = cards.filter(|(_, missing)| *missing != 0).map(|(number, missing)| Difference {
        what: format!(
            "the guest uses features of network card {number} that its network here does not have: {}",
            list(missing)
        ),
        remedy: format!(
            "give as --net number {number}, without uso=off, a tap of a kernel that has them (uso: Linux 6.2), or a stream \
             socket, which has all of them"
        ),
    });
    lacking.collect()
}

fn list(features: u64) -> String {
    let set = (0..u64::BITS).filter(|bit| features & 1 << bit != 0);
    let name = |bit| NAMES.iter().find(|(known, _)| *known == bit).map(|(_, name)| (*name).to_owned());
    set.map(|bit| name(bit).unwrap_or_else(|| format!("bit {bit}"))).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of the standard (virtio 1.2 §5.1.3; host_uso, guest_uso4, guest_uso6 are 56, 54, 55).
    #[test]
    fn what_a_network_lacks_is_named_for_each_card() {
        let all = 1 << 54 | 1 << 55 | 1 << 56 | 1 << 10 | 1;
        let without_uso = all & !(0b111 << 54);
        let list = |agreed: &[u64], offered: &[u64]| {
            lacking(agreed, offered).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let remedy = "without uso=off, a tap of a kernel that has them (uso: Linux 6.2), or a stream socket, which has all of \
                    them)";
        assert_eq!(
            list(&[0, all, 1 << 10 | 1 << 40, 0], &[0, without_uso, 0]),
            [
                format!(
                    "the guest uses features of network card 2 that its network here does not have: guest_uso4, \
                     guest_uso6, host_uso (give as --net number 2, {remedy}"
                ),
                format!(
                    "the guest uses features of network card 3 that its network here does not have: guest_ufo, bit 40 \
                     (give as --net number 3, {remedy}"
                ),
            ]
        );
        // Features that the guest has not negotiated may be missing here, and others may be offered in addition.
        assert_eq!(list(&[without_uso, 0], &[without_uso, all]), [""; 0]);
        assert_eq!(list(&[without_uso], &[all]), [""; 0]);
    }
}
