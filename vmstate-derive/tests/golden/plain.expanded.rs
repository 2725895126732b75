# [allow (clippy :: all , clippy :: pedantic , clippy :: nursery , clippy :: restriction)] # [allow (unused_qualifications , missing_docs , missing_debug_implementations , unreachable_pub)] const _ : () = {
    use :: vmstate :: __private as __v ;
    # [doc (hidden)] pub struct __Undo {
        field_0 : < u8 as __v :: Wire > :: Undo , field_1 : < [u32 ; 4] as __v :: Wire > :: Undo , of : :: core :: marker :: PhantomData < fn () -> Plain > ,
    }
    trait __Parts : :: core :: marker :: Sized {
        const __FIELDS_0 : & 'static [__v :: Field] ;
        const __SUBSECTIONS : & 'static [__v :: Description] ;
        const __FRAMED : () ;
        fn __save_0 (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > ;
        fn __load_0 (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > ;
    }
    # [automatically_derived] impl __Parts for Plain {
        const __FIELDS_0 : & 'static [__v :: Field] = & [__v :: Field :: new (__v :: Shared :: Static ("a") , < u8 as __v :: Wire > :: KIND , __v :: Presence :: Since (0u32)) , __v :: Field :: new (__v :: Shared :: Static ("b") , < [u32 ; 4] as __v :: Wire > :: KIND , __v :: Presence :: Since (0u32)) ,] ;
        const __SUBSECTIONS : & 'static [__v :: Description] = & [] ;
        const __FRAMED : () = () ;
        fn __save_0 (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > {
            __v :: within (< u8 as __v :: Wire > :: save (& mut self . a , out) , "a") ? ;
            __v :: within (< [u32 ; 4] as __v :: Wire > :: save (& mut self . b , out) , "b") ? ;
            :: core :: result :: Result :: Ok (())
        }
        fn __load_0 (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > {
            let () = < Self as __Parts > :: __FRAMED ;
            __v :: window (version , 1u32 , 1u32 , input) ? ;
            __v :: within (< u8 as __v :: Wire > :: load (& mut self . a , input) , "a") ? ;
            __v :: within (< [u32 ; 4] as __v :: Wire > :: load (& mut self . b , input) , "b") ? ;
            :: core :: result :: Result :: Ok (())
        }
    }
    # [automatically_derived] impl __v :: Wire for Plain {
        type Undo = __Undo ;
        const KIND : __v :: Kind = __v :: Kind :: Struct (__v :: Shared :: Static (< Self as __v :: VmState > :: DESCRIPTION)) ;
        fn save (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > {
            < Self as __Parts > :: __save_0 (self , out)
        }
        fn load (& mut self , input : & mut __v :: Reader < '_ >) -> __v :: Result < () > {
            < Self as __Parts > :: __load_0 (self , input , 1u32)
        }
        fn remember (& self) -> Self :: Undo {
            __Undo {
                field_0 : < u8 as __v :: Wire > :: remember (& self . a) , field_1 : < [u32 ; 4] as __v :: Wire > :: remember (& self . b) , of : :: core :: marker :: PhantomData
            }
        }
        fn undo (& mut self , undo : Self :: Undo) {
            let _ = & undo ;
            < u8 as __v :: Wire > :: undo (& mut self . a , undo . field_0) ;
            < [u32 ; 4] as __v :: Wire > :: undo (& mut self . b , undo . field_1) ;
        }
    }
    # [automatically_derived] impl __v :: VmState for Plain {
        const DESCRIPTION : & 'static __v :: Description = & __v :: Description :: new (__v :: Shared :: Static ("plain") , 1u32 , 1u32 , __v :: Shared :: Static (< Self as __Parts > :: __FIELDS_0) , __v :: Shared :: Static (< Self as __Parts > :: __SUBSECTIONS) ,) ;
        fn load_version (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > {
            < Self as __Parts > :: __load_0 (self , input , version)
        }
    }
}
;
