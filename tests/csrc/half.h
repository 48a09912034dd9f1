/* What the tests of numbers and of whole bodies hold float16 against. */
#include <math.h>
#include <stdint.h>

/* Half precision by its definition: the nearest of the numbers k * 2^e, of two the even one. */
static uint16_t half_of(double d)
{
    double size = fabs(d);
    int e = size < ldexp(1, -14) ? -24 : ilogb(size) - 10;
    double k = nearbyint(ldexp(size, -e));
    if (ldexp(k, e) > 65504)
        return 0xffff;
    uint16_t bits = (uint16_t)(e == -24 ? k : k + 1024.0 * (e + 24));
    return (uint16_t)(bits | (signbit(d) ? 0x8000 : 0));
}
