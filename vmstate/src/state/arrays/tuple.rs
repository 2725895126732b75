//! Tuples of up to six values: concatenated; described as a nested struct `tuple` with the fields `0`, `1`, ….

use std::marker::PhantomData;

use super::super::Wire;
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::schema::{Description, Field, Kind, MaybeStatic, Presence};

/// The description of tuple `T`.
struct Of<T>(PhantomData<T>);

macro_rules! tuple {
    ($($type:ident $index:tt $name:literal)*) => {
        impl<$($type: Wire),*> Of<($($type,)*)> {
            const FIELDS: &'static [Field] =
                &[$(Field::new(MaybeStatic::Static($name), $type::KIND, Presence::Since(0))),*];
            const DESCRIPTION: &'static Description =
                &Description::new(MaybeStatic::Static("tuple"), 1, 1, MaybeStatic::Static(Self::FIELDS), MaybeStatic::Static(&[]));
        }

        impl<$($type: Wire),*> Wire for ($($type,)*) {
            type Undo = ($($type::Undo,)*);
            const KIND: Kind = Kind::Struct(MaybeStatic::Static(Of::<Self>::DESCRIPTION));

            #[inline]
            fn save(&mut self, out: &mut Writer) -> Result<()> {
                $(self.$index.save(out).map_err(|error| error.in_field($name))?;)*
                Ok(())
            }

            #[inline]
            fn load(&mut self, input: &mut Reader<'_>) -> Result<()> {
                $(self.$index.load(input).map_err(|error| error.in_field($name))?;)*
                Ok(())
            }

            fn remember(&self) -> Self::Undo {
                ($(self.$index.remember(),)*)
            }

            fn undo(&mut self, undo: Self::Undo) {
                $(self.$index.undo(undo.$index);)*
            }
        }
    };
}

tuple!(A 0 "0");
tuple!(A 0 "0" B 1 "1");
tuple!(A 0 "0" B 1 "1" C 2 "2");
tuple!(A 0 "0" B 1 "1" C 2 "2" D 3 "3");
tuple!(A 0 "0" B 1 "1" C 2 "2" D 3 "3" E 4 "4");
tuple!(A 0 "0" B 1 "1" C 2 "2" D 3 "3" E 4 "4" F 5 "5");
