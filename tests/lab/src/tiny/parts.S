# Code that the guests that rewrite memory share; included by their sources.

        .set    COM1, 0x3f8
        .set    LSR, COM1 + 5
        .set    FIRST, 0x400000
        .set    GED, 0xfea00200         # sleep control, sleep status, reset
        .set    MIX, 0x61c88647

# Checks the page at RDI, if pass R10 is not the first, and rewrites it; jumps to wrong if it is wrong. RDI then points
# past the page; RAX is lost.
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

# The routines, placed at the end of a guest's code.
        .macro  routines
# Parses the hexadecimal number at RSI into RAX, 0 if there is none; RSI then points past the byte that ends the number.
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

# Reads the time stamp counter into RAX; RDX is lost.
ticks:  rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        ret
        .endm
