# What the guests that rewrite memory have in common; included by their sources.

        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    FIRST, 0x400000
        .set    GED, 0xfea00200         # sleep control, sleep status, reset
        .set    MIX, 0x61c88647

# The page at RDI, in pass R10: checked if there was a pass before, else wrong is jumped to, and rewritten. RDI is behind it then;
# RAX is lost.
        .macro  rewrite_page
        test    %r10, %r10
        jz      9f
        imul    $MIX, %r10, %rax        # what the pass before wrote: pass number and address, mixed
        xor     %rdi, %rax
        cmp     %rax, (%rdi)
        jne     wrong
        cmp     %rax, 0xff8(%rdi)
        jne     wrong
9:      lea     1(%r10), %rax
        imul    $MIX, %rax, %rax
        xor     %rdi, %rax
        mov     %rax, (%rdi)
        mov     %rax, 0xff8(%rdi)
        add     $0x1000, %rdi
        .endm

# The routines, where the code ends with them.
        .macro  routines
# RAX: the hexadecimal number at RSI, 0 if there is none; RSI moves behind it and the byte that ends it.
hex:    xor     %eax, %eax
1:      movzbl  (%rsi), %edx
        test    %edx, %edx
        jz      2f                      # stays at the end of the line
        inc     %rsi
        sub     $'0', %edx
        js      2f
        cmp     $10, %edx
        jb      3f
        sub     $'a' - '0' - 10, %edx
        cmp     $10, %edx
        jb      2f
        cmp     $16, %edx
        jae     2f
3:      shl     $4, %rax
        or      %rdx, %rax
        jmp     1b
2:      ret

# Time stamp counter in RAX; RDX is lost.
ticks:  rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        ret
        .endm
