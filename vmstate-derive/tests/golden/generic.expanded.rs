# [allow (clippy :: all , clippy :: pedantic , clippy :: nursery , clippy :: restriction)] # [allow (unused_qualifications , missing_docs , missing_debug_implementations , unreachable_pub)] const _ : () = {
    use :: vmstate :: __private as __v ;
    # [doc (hidden)] pub struct __Undo < 'a , T : Copy , const N : usize > where T : Default , [T ; N] : __v :: Wire , Option < T > : :: core :: clone :: Clone {
        field_0 : < [T ; N] as __v :: Wire > :: Undo , field_1 : Option < T > , of : :: core :: marker :: PhantomData < fn () -> Ring < 'a , T , N > > ,
    }
    trait __Parts : :: core :: marker :: Sized {
        const __FIELDS_0 : & 'static [__v :: Field] ;
        const __SUBSECTIONS : & 'static [__v :: Description] ;
        const __FRAMED : () ;
        fn __save_0 (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > ;
        fn __load_0 (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > ;
    }
    # [automatically_derived] impl < 'a , T : Copy , const N : usize > __Parts for Ring < 'a , T , N > where T : Default , [T ; N] : __v :: Wire , Option < T > : :: core :: clone :: Clone {
        const __FIELDS_0 : & 'static [__v :: Field] = & [__v :: Field :: new (__v :: Shared :: Static ("0") , < [T ; N] as __v :: Wire > :: KIND , __v :: Presence :: Since (0u32)) , __v :: Field :: new (__v :: Shared :: Static ("1") , codec :: KIND , __v :: Presence :: Since (0u32)) ,] ;
        const __SUBSECTIONS : & 'static [__v :: Description] = & [] ;
        const __FRAMED : () = {
            :: core :: assert ! (! < Self as __Parts > :: __FIELDS_0 [0usize] . kind . ends_in_subsections () , "this ends in subsections and more fields follow: a reader may take their first bytes for a \
                    subsection. Put it last or into a subsection, or say `unframed` if that layout is given") ;
        }
        ;
        fn __save_0 (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > {
            __v :: within (< [T ; N] as __v :: Wire > :: save (& mut self . 0 , out) , "0") ? ;
            let before = out . len () ;
            __v :: within (codec :: save (& self . 1 , out) , "1") ? ;
            __v :: within (__v :: custom_size (& codec :: KIND , before , out) , "1") ? ;
            :: core :: result :: Result :: Ok (())
        }
        fn __load_0 (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > {
            let () = < Self as __Parts > :: __FRAMED ;
            __v :: window (version , 1u32 , 1u32 , input) ? ;
            __v :: within (< [T ; N] as __v :: Wire > :: load (& mut self . 0 , input) , "0") ? ;
            self . 1 = __v :: within (codec :: load (input) , "1") ? ;
            :: core :: result :: Result :: Ok (())
        }
    }
    # [automatically_derived] impl < 'a , T : Copy , const N : usize > __v :: Wire for Ring < 'a , T , N > where T : Default , [T ; N] : __v :: Wire , Option < T > : :: core :: clone :: Clone {
        type Undo = __Undo < 'a , T , N > ;
        const KIND : __v :: Kind = __v :: Kind :: Struct (__v :: Shared :: Static (< Self as __v :: VmState > :: DESCRIPTION)) ;
        fn save (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > {
            < Self as __Parts > :: __save_0 (self , out)
        }
        fn load (& mut self , input : & mut __v :: Reader < '_ >) -> __v :: Result < () > {
            < Self as __Parts > :: __load_0 (self , input , 1u32)
        }
        fn remember (& self) -> Self :: Undo {
            __Undo {
                field_0 : < [T ; N] as __v :: Wire > :: remember (& self . 0) , field_1 : < Option < T > as :: core :: clone :: Clone > :: clone (& self . 1) , of : :: core :: marker :: PhantomData
            }
        }
        fn undo (& mut self , undo : Self :: Undo) {
            let _ = & undo ;
            < [T ; N] as __v :: Wire > :: undo (& mut self . 0 , undo . field_0) ;
            self . 1 = undo . field_1 ;
        }
    }
    # [automatically_derived] impl < 'a , T : Copy , const N : usize > __v :: VmState for Ring < 'a , T , N > where T : Default , [T ; N] : __v :: Wire , Option < T > : :: core :: clone :: Clone {
        const DESCRIPTION : & 'static __v :: Description = & __v :: Description :: new (__v :: Shared :: Static ("ring") , 1u32 , 1u32 , __v :: Shared :: Static (< Self as __Parts > :: __FIELDS_0) , __v :: Shared :: Static (< Self as __Parts > :: __SUBSECTIONS) ,) ;
        fn load_version (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > {
            < Self as __Parts > :: __load_0 (self , input , version)
        }
    }
}
;
