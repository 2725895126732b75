# [allow (clippy :: all , clippy :: pedantic , clippy :: nursery , clippy :: restriction)] # [allow (unused_qualifications , missing_docs , missing_debug_implementations , unreachable_pub)] const _ : () = {
    use renamed :: __private as __v ;
    # [doc (hidden)] pub struct __Undo {
        field_0 : < u8 as __v :: Wire > :: Undo , field_1 : u32 , field_2 : < u8 as __v :: Wire > :: Undo , field_3 : < Vec < u16 > as __v :: Counted > :: Undo , field_4 : Vec < u8 > , field_5 : [u8 ; 6] , field_6 : Option < u64 > , field_7 : < u32 as __v :: Wire > :: Undo , of : :: core :: marker :: PhantomData < fn () -> Dev > ,
    }
    const _ : () = :: core :: assert ! (! < Dev as __Parts > :: __FIELDS_0 [5usize] . kind . ends_in_subsections () , "this ends in subsections and more fields follow: a reader may take their first bytes for a \
                    subsection. Put it last or into a subsection, or say `unframed` if that layout is given") ;
    const _ : () = :: core :: assert ! (! < Dev as __v :: VmState > :: DESCRIPTION . subsections_are_stolen () , "the names of these subsections begin with the name of a struct right before them, which would take \
                them for its own: rename one of them") ;
    trait __Parts : :: core :: marker :: Sized {
        const __FIELDS_0 : & 'static [__v :: Field] ;
        const __FIELDS_1 : & 'static [__v :: Field] ;
        const __SUBSECTIONS : & 'static [__v :: Description] ;
        const __FRAMED : () ;
        fn __save_0 (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > ;
        fn __save_1 (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > ;
        fn __load_0 (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > ;
        fn __load_1 (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > ;
    }
    # [automatically_derived] impl __Parts for Dev {
        const __FIELDS_0 : & 'static [__v :: Field] = & [__v :: Field :: new (__v :: Shared :: Static ("env.a") , < u8 as __v :: Wire > :: KIND , __v :: Presence :: Since (3u32)) , __v :: Field :: new (__v :: Shared :: Static ("Self::check_a") , __v :: Kind :: Check , __v :: Presence :: If (__v :: Shared :: Static ("Self::check_a"))) , __v :: Field :: new (__v :: Shared :: Static ("Self::fine") , __v :: Kind :: Check , __v :: Presence :: If (__v :: Shared :: Static ("Self::fine"))) , __v :: Field :: new (__v :: Shared :: Static ("b") , < u16 as __v :: Wire > :: KIND , __v :: Presence :: If (__v :: Shared :: Static ("Self::old"))) , __v :: Field :: new (__v :: Shared :: Static ("count") , < u8 as __v :: Wire > :: KIND , __v :: Presence :: Since (0u32)) , __v :: Field :: new (__v :: Shared :: Static ("list") , < Vec < u16 > as __v :: Counted > :: KIND , __v :: Presence :: Since (0u32)) , __v :: Field :: new (__v :: Shared :: Static ("bytes") , __v :: Kind :: CountedBuffer , __v :: Presence :: Since (0u32)) , __v :: Field :: new (__v :: Shared :: Static ("fixed") , < [u8 ; 6] as __v :: Buffer > :: KIND , __v :: Presence :: Since (0u32)) , __v :: Field :: new (__v :: Shared :: Static ("expiry") , timer :: KIND , __v :: Presence :: Since (0u32)) ,] ;
        const __FIELDS_1 : & 'static [__v :: Field] = & [__v :: Field :: new (__v :: Shared :: Static ("x") , < u32 as __v :: Wire > :: KIND , __v :: Presence :: Since (2u32)) ,] ;
        const __SUBSECTIONS : & 'static [__v :: Description] = & [__v :: Description :: new (__v :: Shared :: Static ("dev/x") , 2u32 , 1u32 , __v :: Shared :: Static (< Self as __Parts > :: __FIELDS_1) , __v :: Shared :: Static (& []) ,)] ;
        const __FRAMED : () = () ;
        fn __save_0 (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > {
            __v :: hook (Self :: freeze (self) , "pre_save") ? ;
            let saved = (|| -> __v :: Result < () > { __v :: within (< u8 as __v :: Wire > :: save (& mut self . a , out) , "env.a") ? ; __v :: within (__v :: hook (Self :: check_a (& * self) , "validate") , "env.a") ? ; __v :: within (__v :: hook (__v :: must_exist (Self :: fine (& * self , 3u32) , "Self::fine") , "must_exist") , "b") ? ; if Self :: old (& * self , 3u32) { out . outcome (1) ; __v :: within (__v :: save_as :: < u32 , u16 > (self . b , out) , "b") ? ; } else { out . outcome (0) ; } __v :: within (< u8 as __v :: Wire > :: save (& mut self . count , out) , "count") ? ; __v :: within (< Vec < u16 > as __v :: Counted > :: save (& mut self . list , __v :: within (__v :: count_to_save (self . count , "count" , MAX) , "list") ? , out) , "list") ? ; __v :: within (__v :: bytes :: save (& self . bytes , __v :: within (__v :: count_to_save (self . count , "count" , 16) , "bytes") ? , out) , "bytes") ? ; out . bytes (< [u8 ; 6] as __v :: Buffer > :: bytes (& self . fixed)) ; let before = out . len () ; __v :: within (timer :: save (& self . expiry , out) , "expiry") ? ; __v :: within (__v :: custom_size (& timer :: KIND , before , out) , "expiry") ? ; if Self :: has_x (& * self) { out . outcome (1) ; __v :: save_header ("dev/x" , 2u32 , out) ; __v :: within (< Self as __Parts > :: __save_1 (self , out) , "dev/x") ? ; } else { out . outcome (0) ; } __v :: hook (Self :: check (& * self) , "validate") ? ; :: core :: result :: Result :: Ok (()) }) () ;
            Self :: unfreeze (self) ;
            saved
        }
        fn __save_1 (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > {
            __v :: within (< u32 as __v :: Wire > :: save (& mut self . x , out) , "x") ? ;
            :: core :: result :: Result :: Ok (())
        }
        fn __load_0 (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > {
            let () = < Self as __Parts > :: __FRAMED ;
            __v :: window (version , 3u32 , 2u32 , input) ? ;
            __v :: load_hook (Self :: reset (self) , "pre_load" , input) ? ;
            if version >= 3u32 {
                __v :: within (< u8 as __v :: Wire > :: load (& mut self . a , input) , "env.a") ? ;
            }
            __v :: within (__v :: load_hook (Self :: check_a (& * self) , "validate" , input) , "env.a") ? ;
            __v :: within (__v :: load_hook (__v :: must_exist (Self :: fine (& * self , version) , "Self::fine") , "must_exist" , input) , "b" ,) ? ;
            if Self :: old (& * self , version) {
                __v :: within (__v :: load_as :: < u32 , u16 > (& mut self . b , input) , "b") ? ;
            }
            __v :: within (< u8 as __v :: Wire > :: load (& mut self . count , input) , "count") ? ;
            __v :: within (< Vec < u16 > as __v :: Counted > :: load (& mut self . list , __v :: within (__v :: count_to_load (self . count , "count" , MAX , input) , "list") ? , input) , "list") ? ;
            __v :: within (__v :: bytes :: load (& mut self . bytes , __v :: within (__v :: count_to_load (self . count , "count" , 16 , input) , "bytes") ? , input) , "bytes") ? ;
            __v :: within (< [u8 ; 6] as __v :: Buffer > :: load (& mut self . fixed , input) , "fixed") ? ;
            self . expiry = __v :: within (timer :: load (input) , "expiry") ? ;
            let mut seen = [false ; 1usize] ;
            while let :: core :: option :: Option :: Some ((place , version)) = __v :: next (input , < Self as __v :: VmState > :: DESCRIPTION , & mut seen) ? {
                match place {
                    0usize => __v :: within (< Self as __Parts > :: __load_1 (self , input , version) , "dev/x") ? , _ => {
                    }
                }
            }
            __v :: load_hook (Self :: check (& * self) , "validate" , input) ? ;
            __v :: load_hook (Self :: thaw (self , version) , "post_load" , input) ? ;
            :: core :: result :: Result :: Ok (())
        }
        fn __load_1 (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > {
            __v :: window (version , 2u32 , 1u32 , input) ? ;
            if version >= 2u32 {
                __v :: within (< u32 as __v :: Wire > :: load (& mut self . x , input) , "x") ? ;
            }
            __v :: load_hook (Self :: thaw_x (self , version) , "post_load" , input) ? ;
            :: core :: result :: Result :: Ok (())
        }
    }
    # [automatically_derived] impl __v :: Wire for Dev {
        type Undo = __Undo ;
        const KIND : __v :: Kind = __v :: Kind :: Struct (__v :: Shared :: Static (< Self as __v :: VmState > :: DESCRIPTION)) ;
        fn save (& mut self , out : & mut __v :: Writer) -> __v :: Result < () > {
            < Self as __Parts > :: __save_0 (self , out)
        }
        fn load (& mut self , input : & mut __v :: Reader < '_ >) -> __v :: Result < () > {
            < Self as __Parts > :: __load_0 (self , input , 3u32)
        }
        fn remember (& self) -> Self :: Undo {
            __Undo {
                field_0 : < u8 as __v :: Wire > :: remember (& self . a) , field_1 : < u32 as :: core :: clone :: Clone > :: clone (& self . b) , field_2 : < u8 as __v :: Wire > :: remember (& self . count) , field_3 : < Vec < u16 > as __v :: Counted > :: remember (& self . list) , field_4 : < Vec < u8 > as :: core :: clone :: Clone > :: clone (& self . bytes) , field_5 : < [u8 ; 6] as :: core :: clone :: Clone > :: clone (& self . fixed) , field_6 : < Option < u64 > as :: core :: clone :: Clone > :: clone (& self . expiry) , field_7 : < u32 as __v :: Wire > :: remember (& self . x) , of : :: core :: marker :: PhantomData
            }
        }
        fn undo (& mut self , undo : Self :: Undo) {
            let _ = & undo ;
            < u8 as __v :: Wire > :: undo (& mut self . a , undo . field_0) ;
            self . b = undo . field_1 ;
            < u8 as __v :: Wire > :: undo (& mut self . count , undo . field_2) ;
            < Vec < u16 > as __v :: Counted > :: undo (& mut self . list , undo . field_3) ;
            self . bytes = undo . field_4 ;
            self . fixed = undo . field_5 ;
            self . expiry = undo . field_6 ;
            < u32 as __v :: Wire > :: undo (& mut self . x , undo . field_7) ;
        }
    }
    # [automatically_derived] impl __v :: VmState for Dev {
        const DESCRIPTION : & 'static __v :: Description = & __v :: Description :: new (__v :: Shared :: Static ("dev") , 3u32 , 2u32 , __v :: Shared :: Static (< Self as __Parts > :: __FIELDS_0) , __v :: Shared :: Static (< Self as __Parts > :: __SUBSECTIONS) ,) ;
        fn load_version (& mut self , input : & mut __v :: Reader < '_ > , version : u32) -> __v :: Result < () > {
            < Self as __Parts > :: __load_0 (self , input , version)
        }
    }
}
;
