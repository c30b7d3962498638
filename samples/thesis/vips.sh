# Images: scaled, blurred, sharpened and turned.
vips gaussnoise noise.v 1600 1200 --mean 128 --sigma 40
vips cast noise.v grey.v uchar
vips copy grey.v input.v --interpretation b-w
nestwalk-mark 3
vips --vips-concurrency=1 affine input.v turned.v '1.1 0.3 -0.3 1.1'
vips --vips-concurrency=1 gaussblur turned.v blurred.v 3
vips --vips-concurrency=1 sharpen blurred.v sharp.v
vips --vips-concurrency=1 hist_equal sharp.v equal.v
nestwalk-mark 4
