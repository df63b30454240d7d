//! Takes a new configuration over while devices go on publishing.
//!
//! Acknowledged messages are in the spool, and stay there until they are sealed. So the parts behind it can be stopped between
//! two batches and started with other datasets; then ingest gets its new routes. What was routed before goes where it
//! went: to a dataset that is no longer declared it waits in the spool, as after a restart.
//!
//! What may be refused is refused before anything is stopped. What fails later leaves the datasets and upstreams of
//! before.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tracing::{error, info, warn};

use super::Agent;
use super::outbound::Outbound;
use crate::clock;
use crate::config::{Config, ConfigError};
use crate::ingest::Routes;
use crate::reload::{Plan, ReloadReport, is_bad_configuration, plan};

impl Agent {
    /// Reads a configuration and takes it over, or goes on as before; says so in the log, in `status`, and to the service
    /// manager.
    ///
    /// # Errors
    /// A part failed that the agent cannot go on without.
    pub async fn reload(
        &mut self,
        read: impl FnOnce() -> std::result::Result<Config, ConfigError>,
    ) -> Result<ReloadReport> {
        if let Some(manager) = &self.manager {
            manager.reloading();
        }
        let taken_over = match read() {
            Ok(new) => self.take_over(new).await?,
            Err(error) => Err(error.into()),
        };
        let mut report = ReloadReport { at_ms: clock::wall_ms(), ..ReloadReport::default() };
        match taken_over {
            Ok(Plan { taken_over, needs_restart, .. }) => {
                info!(taken_over = taken_over.join(", "), "Reloaded the configuration.");
                if !needs_restart.is_empty() {
                    warn!(keys = needs_restart.join(", "), "What has changed here counts after a restart.");
                }
                report = ReloadReport { taken_over, needs_restart, ..report };
            }
            Err(problem) => {
                report.bad_configuration = is_bad_configuration(&problem);
                let problem = format!("{problem:#}");
                error!(problem, "The new configuration is refused; the one before goes on.");
                report.problem = Some(problem);
            }
        }
        self.shared.note_reload(report.clone());
        if let Some(manager) = &self.manager {
            manager.ready(&self.shared);
        }
        Ok(report)
    }

    /// The inner result says why the configuration is refused, and nothing has changed.
    async fn take_over(&mut self, new: Config) -> Result<Result<Plan>> {
        let plan = plan(&self.shared.running().config, new);
        let keys = match &self.doors {
            Some(doors) => match doors.read_again(&plan.config.auth) {
                Ok(keys) => Some(keys),
                Err(refused) => return Ok(Err(refused.into())),
            },
            None => None,
        };
        if !plan.taken_over.is_empty()
            && let Err(refused) = self.replace_outbound(plan.config.clone()).await?
        {
            return Ok(Err(refused));
        }
        if let (Some(doors), Some(keys)) = (&self.doors, keys) {
            doors.change(&self.broker, keys);
        }
        Ok(Ok(plan))
    }

    /// Stops the parts behind the spool, gives them this configuration, and starts them; then ingest follows.
    async fn replace_outbound(&mut self, config: Config) -> Result<Result<()>> {
        let (before, tools) = (self.shared.running(), self.tools.clone());
        let (checking, checked) = (tools.clone(), config.clone());
        let running = Arc::clone(&before);
        let check = tokio::task::spawn_blocking(move || checking.check(&running.config, &checked));
        if let Err(refused) = check.await? {
            return Ok(Err(refused));
        }
        let outbound = self.outbound.take().context("the parts behind the spool are not there")?;
        let mut stopped = outbound.pause().await?;
        let replacing = tokio::task::spawn_blocking(move || {
            let refused = match tools.redeclare(&mut stopped.sealer, &config) {
                Ok(()) => match tools.running(config, &stopped.sealer, Some(&before)) {
                    Ok(running) => return Ok((stopped, running, Ok(()))),
                    Err(refused) => {
                        tools.redeclare(&mut stopped.sealer, &before.config)?;
                        refused
                    }
                },
                Err(refused) => refused,
            };
            let running = tools.running(before.config.clone(), &stopped.sealer, Some(&before))?;
            anyhow::Ok((stopped, running, Err(refused)))
        });
        let (stopped, running, replaced) = replacing.await?.context("go back to the configuration of before")?;
        self.outbound = Some(Outbound::start(&self.tools, stopped, &running)?);
        let running = Arc::new(running);
        self.shared.set_running(Arc::clone(&running));
        self.routes.send_replace(Routes::new(&running.config, &running.datasets));
        Ok(replaced)
    }
}
