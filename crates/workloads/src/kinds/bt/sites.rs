//! Places of the program that access memory, each with the instructions up to it.

use crate::recorder::Site;

pub(super) const POINT_U: Site = Site::new(0, 3);
pub(super) const POINT_STORE: Site = Site::new(1, 3);
pub(super) const FORCING: Site = Site::new(2, 2);
pub(super) const RHS_COPY: Site = Site::new(3, 1);
pub(super) const FLUX_SCALARS: Site = Site::new(4, 3);
pub(super) const FLUX_RHS: Site = Site::new(5, 2);
pub(super) const FLUX_U: Site = Site::new(6, 3);
pub(super) const FLUX_STORE: Site = Site::new(7, 4);
pub(super) const SCALE_LOAD: Site = Site::new(8, 2);
pub(super) const SCALE_STORE: Site = Site::new(9, 2);
pub(super) const JAC_SCALARS: Site = Site::new(10, 4);
pub(super) const JAC_U: Site = Site::new(11, 4);
pub(super) const JAC_STORE: Site = Site::new(12, 3);
pub(super) const LHS_LOAD: Site = Site::new(13, 2);
pub(super) const LHS_STORE: Site = Site::new(14, 2);
pub(super) const MATVEC: Site = Site::new(15, 2);
pub(super) const MATVEC_STORE: Site = Site::new(16, 2);
pub(super) const MATMUL: Site = Site::new(17, 4);
pub(super) const MATMUL_STORE: Site = Site::new(18, 2);
pub(super) const BINV: Site = Site::new(19, 6);
pub(super) const BINV_STORE: Site = Site::new(20, 2);
pub(super) const BACK_LOAD: Site = Site::new(21, 3);
pub(super) const BACK_STORE: Site = Site::new(22, 2);
pub(super) const ADD_LOAD: Site = Site::new(23, 2);
pub(super) const ADD_STORE: Site = Site::new(24, 1);
