//! State of rust-vmm's crates, each behind the feature of its crate's name.

#[cfg(feature = "vm-memory")]
mod address;
#[cfg(feature = "virtio-queue")]
mod queue;
#[cfg(feature = "vm-superio")]
mod serial;

/// Encodes a struct of another crate as the struct of this library that mirrors it.
#[cfg(any(feature = "virtio-queue", feature = "vm-superio"))]
macro_rules! as_ours {
    ($foreign:ty, $ours:ty) => {
        impl $crate::state::Wire for $foreign {
            type Undo = Self;
            const KIND: $crate::schema::Kind = <$ours as $crate::state::Wire>::KIND;

            fn save(&mut self, out: &mut $crate::codec::Writer) -> $crate::error::Result<()> {
                <$ours>::from(&*self).save(out)
            }

            fn load(&mut self, input: &mut $crate::codec::Reader<'_>) -> $crate::error::Result<()> {
                let mut ours = <$ours>::from(&*self);
                ours.load(input)?;
                *self = ours.into();
                Ok(())
            }

            fn remember(&self) -> Self {
                self.clone()
            }

            fn undo(&mut self, undo: Self) {
                *self = undo;
            }
        }

        impl $crate::state::VmState for $foreign {
            const DESCRIPTION: &'static $crate::schema::Description = <$ours as $crate::state::VmState>::DESCRIPTION;

            fn load_version(
                &mut self,
                input: &mut $crate::codec::Reader<'_>,
                version: u32,
            ) -> $crate::error::Result<()> {
                let mut ours = <$ours>::from(&*self);
                ours.load_version(input, version)?;
                *self = ours.into();
                Ok(())
            }
        }
    };
}
#[cfg(any(feature = "virtio-queue", feature = "vm-superio"))]
use as_ours;
