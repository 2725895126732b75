:: core :: compile_error ! {
    "a name on the wire is needed: `name = \"…\"`"
}
:: core :: compile_error ! {
    "unknown attribute `sinc` on a field; did you mean `since`?"
}
# [allow (unused_qualifications)] const _ : () = {
    use :: vmstate :: __private as __v ;
    # [automatically_derived] impl < T > __v :: Wire for Mistaken < T > {
        type Undo = () ;
        const KIND : __v :: Kind = __v :: Kind :: Unused (0) ;
        fn save (& mut self , _ : & mut __v :: Writer) -> __v :: Result < () > {
            :: core :: result :: Result :: Ok (())
        }
        fn load (& mut self , _ : & mut __v :: Reader < '_ >) -> __v :: Result < () > {
            :: core :: result :: Result :: Ok (())
        }
        fn remember (& self) {
        }
        fn undo (& mut self , () : ()) {
        }
    }
    # [automatically_derived] impl < T > __v :: VmState for Mistaken < T > {
        const DESCRIPTION : & 'static __v :: Description = & __v :: Description :: new (__v :: Shared :: Static ("") , 0 , 0 , __v :: Shared :: Static (& []) , __v :: Shared :: Static (& []) ,) ;
        fn load_version (& mut self , _ : & mut __v :: Reader < '_ > , _ : u32) -> __v :: Result < () > {
            :: core :: result :: Result :: Ok (())
        }
    }
}
;
