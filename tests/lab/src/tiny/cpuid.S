# The CPUID guest: entered in 64-bit mode as Linux is. It prints what CPUID answers, and powers off.
# Plain integer instructions only, so that a KVM that emulates CPL 0 instruction by instruction runs them, too.
#
# Prints a line for each leaf and sub-leaf that is not all zeros: function, index, EAX, EBX, ECX, EDX, in eight hexadecimal
# digits each. It goes through three ranges, from 0, from 0x40000000 and from 0x80000000, each up to the function that
# EAX of its first leaf names. "end" follows the last line.

        .set    COM1, 0x3f8
        .set    GED, 0xfea00200         # sleep control
        .set    INDEXED, 0xe0142890     # functions below 32 with sub-leaves: 4, 7, 0xb, 0xd, 0x12, 0x14, 0x1d to 0x1f
        .set    SUBLEAVES, 32

        .globl  _start
_start:
        mov     $0x80000, %esp
        xor     %r8d, %r8d
        call    range
        mov     $0x40000000, %r8d
        call    range
        mov     $0x80000000, %r8d
        call    range
        mov     $'e', %al
        call    putc
        mov     $'n', %al
        call    putc
        mov     $'d', %al
        call    putc
        call    newline
        mov     $GED, %ebx
        movb    $0x34, (%rbx)
        cli
1:      hlt
        jmp     1b

# Prints all functions from R8D on.
range:  mov     %r8d, %eax
        xor     %ecx, %ecx
        cpuid
        mov     %eax, %r9d              # the last one
        mov     %r8d, %edx              # what no range passes, whatever is answered
        add     $0x100, %edx
        cmp     %edx, %r9d
        cmova   %edx, %r9d
function:
        cmp     %r9d, %r8d
        ja      9f
        xor     %r10d, %r10d            # index
        mov     $1, %r11d               # sub-leaves
        cmp     $0x8000001d, %r8d
        je      1f
        cmp     $32, %r8d
        jae     2f
        mov     $INDEXED, %eax
        bt      %r8d, %eax
        jnc     2f
1:      mov     $SUBLEAVES, %r11d
2:      mov     %r8d, %eax
        mov     %r10d, %ecx
        cpuid
        mov     %eax, %r12d
        mov     %ebx, %r13d
        mov     %ecx, %r14d
        mov     %edx, %r15d
        or      %ebx, %eax
        or      %ecx, %eax
        or      %edx, %eax
        jz      3f
        mov     %r8d, %ebx
        call    word
        mov     %r10d, %ebx
        call    word
        mov     %r12d, %ebx
        call    word
        mov     %r13d, %ebx
        call    word
        mov     %r14d, %ebx
        call    word
        mov     %r15d, %ebx
        call    word
        call    newline
3:      inc     %r10d
        cmp     %r11d, %r10d
        jb      2b
        inc     %r8d
        jmp     function
9:      ret

newline:
        mov     $'\n', %al
putc:   mov     $COM1, %dx
        out     %al, %dx
        ret

# Prints EBX in eight digits, and a space.
word:   mov     $32, %ecx
1:      sub     $4, %ecx
        mov     %ebx, %eax
        shr     %cl, %eax
        and     $15, %eax
        add     $'0', %al
        cmp     $'9', %al
        jbe     2f
        add     $'a' - '9' - 1, %al
2:      call    putc
        test    %ecx, %ecx
        jnz     1b
        mov     $' ', %al
        jmp     putc
